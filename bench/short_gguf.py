"""Copies the first layers of a GGUF model, for studies whose prompts are long.

python -m bench.short_gguf MODEL.gguf OUT.gguf --layers 6
"""

from __future__ import annotations

import argparse

import gguf


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("source")
    parser.add_argument("out")
    parser.add_argument("--layers", type=int, default=6)
    args = parser.parse_args()
    reader = gguf.GGUFReader(args.source)
    fields = {name: f for name, f in reader.fields.items() if name[:4] != "GGUF"}
    name = str(fields.pop("general.architecture").contents())
    writer = gguf.GGUFWriter(args.out, name)
    for key, field in fields.items():
        value = field.contents()
        if key == f"{name}.block_count":
            value = args.layers
        kind, inner = field.types[0], field.types[-1]
        is_array = kind == gguf.GGUFValueType.ARRAY
        writer.add_key_value(key, value, kind, inner if is_array else None)
    for tensor in reader.tensors:
        block = tensor.name.split(".")[1] if tensor.name.startswith("blk.") else "0"
        if int(block) < args.layers:
            writer.add_tensor(tensor.name, tensor.data, raw_dtype=tensor.tensor_type)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()


if __name__ == "__main__":
    main()
