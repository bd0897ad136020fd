// The smallest extension module that passes every check of check_macho.py.
// The tests break one property at a time, with macros and linker flags.
namespace mlx::core::metal {
__attribute__((visibility("default"))) bool is_available();
__attribute__((visibility("default"))) bool is_nax_available();  // not exported
}  // namespace mlx::core::metal

extern "C" void* PyModule_Create2(void* definition, int version);
extern "C" const char* PyUnicode_AsUTF8(void* unicode);  // abi3 from 3.13 on

#ifndef KEY
#define KEY "nanobind_system_libcpp_abi1"
#endif
[[gnu::used]] static const char key[] = KEY;
#ifdef PATH
[[gnu::used]] static const char path[] = PATH;
#endif

#ifdef EXTRA_EXPORT
extern "C" __attribute__((visibility("default"))) int extra() {
  return 0;
}
#endif

extern "C" __attribute__((visibility("default"))) void* PyInit__ext() {
  bool ready = true;
#ifndef WITHOUT_MLX
  ready = mlx::core::metal::is_available();
#endif
#ifdef HIDDEN
  ready = mlx::core::metal::is_nax_available();
#endif
#ifdef UNSTABLE
  ready = PyUnicode_AsUTF8(nullptr) != nullptr;
#endif
  return ready ? PyModule_Create2(nullptr, 3) : nullptr;
}
