"""How each named rule of byte-level BPE splits a text before merges.

A GGUF names the rule (``tokenizer.ggml.pre``), but does not contain it. Each rule here
is that of the models with this name, in their own tokenizer.json. llama.cpp replaces
some expressions by others that its engine supports. Unknown names are refused: a nearly
right tokenizer is a wrong one.
"""

from __future__ import annotations

from dataclasses import dataclass

from tokenizers import Regex, normalizers, pre_tokenizers

from mlx_nibble.io.gguf.errors import fail

# GPT-2's own expression is built into ByteLevel.
_ENDINGS = r"(?i:'s|'t|'re|'ve|'m|'ll|'d)"
_SPACES = r"\s*[\r\n]+|\s+(?!\S)|\s+"
_WORDS = r"[^\r\n\p{L}\p{N}]?\p{L}+"
_UPPER, _LOWER = r"[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]", r"[\p{Ll}\p{Lm}\p{Lo}\p{M}]"


def _words_of_llama(digits: str) -> str:
    """Return the expression of Llama 3 and Qwen 2, which differ in digits."""
    signs = r" ?[^\s\p{L}\p{N}]+[\r\n]*"
    return f"{_ENDINGS}|{_WORDS}|{digits}|{signs}|{_SPACES}"


def _words_by_case(digits: str, endings: str) -> str:
    """Return the expression of GPT-4o and Tekken: a word changes its case once."""
    first = rf"[^\r\n\p{{L}}\p{{N}}]?{_UPPER}*{_LOWER}+{endings}"
    second = rf"[^\r\n\p{{L}}\p{{N}}]?{_UPPER}+{_LOWER}*{endings}"
    signs = r" ?[^\s\p{L}\p{N}]+[\r\n/]*"
    return f"{first}|{second}|{digits}|{signs}|{_SPACES}"


# The letters with a case in Unicode 11, as DeepSeek's tokenizer lists them.
_CASED = (
    "A-Za-z\u00b5\u00c0-\u00d6\u00d8-\u00f6\u00f8-\u01ba\u01bc-\u01bf\u01c4-"
    "\u0293\u0295-\u02af\u0370-\u0373\u0376\u0377\u037b-\u037d\u037f\u0386"
    "\u0388-\u038a\u038c\u038e-\u03a1\u03a3-\u03f5\u03f7-\u0481\u048a-\u052f"
    "\u0531-\u0556\u10a0-\u10c5\u13a0-\u13f5\u13f8-\u13fd\u1c90-\u1cba\u1cbd-"
    "\u1cbf\u1d00-\u1d2b\u1d6b-\u1d77\u1d79-\u1d9a\u1e00-\u1f15\u1f18-\u1f1d"
    "\u1f20-\u1f45\u1f48-\u1f4d\u1f50-\u1f57\u1f59\u1f5b\u1f5d\u1f5f-\u1f7d"
    "\u1f80-\u1fb4\u1fb6-\u1fbc\u1fbe\u1fc2-\u1fc4\u1fc6-\u1fcc\u1fd0-\u1fd3"
    "\u1fd6-\u1fdb\u1fe0-\u1fec\u1ff2-\u1ff4\u1ff6-\u1ffc\u2102\u2107\u210a-"
    "\u2113\u2115\u2119-\u211d\u2124\u2126\u2128\u212a-\u212d\u212f-\u2134"
    "\u2139\u213c-\u213f\u2145-\u2149\u214e\u2183\u2184\u2c00-\u2c7b\u2c7e-"
    "\u2ce4\u2ceb-\u2cee\u2cf2\u2cf3\ua640-\ua66d\ua680-\ua69b\ua722-\ua76f"
    "\ua771-\ua787\ua78b-\ua78e\uab70-\uabbf\ufb00-\ufb06\ufb13-\ufb17\uff21-"
    "\uff3a\uff41-\uff5a\U00010400-\U0001044f\U000104b0-\U000104d3\U000104d8-"
    "\U000104fb\U00010c80-\U00010cb2\U00010cc0-\U00010cf2\U000118a0-\U000118df"
    "\U0001e900-\U0001e943"
)
_IDEOGRAPHS = "[\u4e00-\u9fa5\u0800-\u4e00\uac00-\ud7ff]+"
_DEEPSEEK_LLM = (
    "[\r\n]",
    rf"\s?[{_CASED}]+",
    "\\s?[!-/:-~\uff01-\uff0f\uff1a-\uff5e\u2018-\u201f\u3000-\u3002]+",
    r"\s+$",
    _IDEOGRAPHS,
)
_DEEPSEEK_CODER = ("[\r\n]", r"\s?\p{L}+", r"\s?\p{P}+", _IDEOGRAPHS)
_DEEPSEEK_3 = (
    r"\p{N}{1,3}",
    "[\u4e00-\u9fa5\u3040-\u309f\u30a0-\u30ff]+",
    r"""[!"#$%&'()*+,\-./:;<=>?@\[\\\]^_`{|}~][A-Za-z]+"""
    r"|[^\r\n\p{L}\p{P}\p{S}]?[\p{L}\p{M}]+| ?[\p{P}\p{S}]+[\r\n]*"
    rf"|{_SPACES}",
)


@dataclass(frozen=True)
class Rule:
    """One rule.

    Attributes:
        expressions: Each splits the pieces that those before it left.
        digits: Whether each digit is a piece.
        gpt2: Whether GPT-2's expression comes last.
        ignore_merges: Whether a piece that is a token is taken whole.
        add_bos: Whether a text begins with the first token, unless the file says not.
        composed: Whether characters are composed first (NFC), as in Qwen 2.
    """

    expressions: tuple[str, ...] = ()
    digits: bool = False
    gpt2: bool = False
    ignore_merges: bool = False
    add_bos: bool = False
    composed: bool = False

    def pre_tokenizer(self) -> pre_tokenizers.PreTokenizer:
        """Return the rule for the tokenizers package."""
        parts: list[pre_tokenizers.PreTokenizer] = [
            pre_tokenizers.Split(Regex(expression), behavior="isolated")
            for expression in self.expressions
        ]
        if self.digits:
            parts.append(pre_tokenizers.Digits(individual_digits=True))
        parts.append(
            pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=self.gpt2)
        )
        return pre_tokenizers.Sequence(parts) if len(parts) > 1 else parts[0]

    def normalizer(self) -> normalizers.Normalizer | None:
        """Return what comes before the rule."""
        return normalizers.NFC() if self.composed else None


_GPT2 = Rule(gpt2=True)
_STARCODER = Rule(digits=True, gpt2=True)
_GPT4 = Rule((_words_of_llama(r"\p{N}{1,3}"),))
_LLAMA3 = Rule((_words_of_llama(r"\p{N}{1,3}"),), ignore_merges=True, add_bos=True)
_RULES = {
    "gpt-2": _GPT2,
    "phi-2": _GPT2,
    "olmo": Rule(gpt2=True, composed=True),
    "smollm": _STARCODER,
    "starcoder": _STARCODER,
    "refact": _STARCODER,
    "llama3": _LLAMA3,
    "llama-v3": _LLAMA3,
    "llama-bpe": _LLAMA3,
    "falcon3": _LLAMA3,
    "pixtral": _LLAMA3,
    "dbrx": _GPT4,
    "smaug-bpe": _GPT4,
    "qwen2": Rule((_words_of_llama(r"\p{N}"),), composed=True),
    "deepseek-r1-qwen": Rule((_words_of_llama(r"\p{N}"),)),
    "tekken": Rule((_words_by_case(r"\p{N}", ""),), ignore_merges=True, add_bos=True),
    "gpt-4o": Rule((_words_by_case(r"\p{N}{1,3}", _ENDINGS + "?"),)),
    "deepseek-llm": Rule(_DEEPSEEK_LLM, digits=True),
    "deepseek-coder": Rule(_DEEPSEEK_CODER, digits=True),
    "deepseek-v3": Rule(_DEEPSEEK_3),
}


def rule_named(name: str) -> Rule:
    """Return the rule of a name.

    Raises:
        ValueError: If there is none.
    """
    if name not in _RULES:
        fail(f"the pre-tokenizer must be one of {', '.join(_RULES)} but is {name!r}.")
    return _RULES[name]
