// <metal_type_traits>.
#pragma once

#include "simt/bfloat.h"

namespace metal {

template <class T, T v>
struct integral_constant {
  using value_type = T;
  static constexpr SIMT_STATIC_CONST T value = v;
};
template <bool b>
using bool_constant = integral_constant<bool, b>;
using true_type = bool_constant<true>;
using false_type = bool_constant<false>;

template <class T, class U>
struct is_same : false_type {};
template <class T>
struct is_same<T, T> : true_type {};
template <class T, class U>
constexpr SIMT_STATIC_CONST bool is_same_v = is_same<T, U>::value;

template <bool b, class T = void>
struct enable_if {};
template <class T>
struct enable_if<true, T> {
  using type = T;
};
template <bool b, class T = void>
using enable_if_t = typename enable_if<b, T>::type;

template <bool b, class T, class F>
struct conditional {
  using type = T;
};
template <class T, class F>
struct conditional<false, T, F> {
  using type = F;
};
template <bool b, class T, class F>
using conditional_t = typename conditional<b, T, F>::type;

template <class T>
struct remove_const {
  using type = T;
};
template <class T>
struct remove_const<const T> {
  using type = T;
};
template <class T>
struct remove_volatile {
  using type = T;
};
template <class T>
struct remove_volatile<volatile T> {
  using type = T;
};
template <class T>
struct remove_cv {
  using type = typename remove_const<typename remove_volatile<T>::type>::type;
};
template <class T>
using remove_cv_t = typename remove_cv<T>::type;

template <class T>
struct remove_addrspace {
  using type = T;
};
#define SIMT_REMOVE(space)           \
  template <class T>                 \
  struct remove_addrspace<space T> { \
    using type = T;                  \
  };
SIMT_EACH_SPACE(SIMT_REMOVE)
#undef SIMT_REMOVE
template <class T>
using remove_addrspace_t = remove_cv_t<typename remove_addrspace<T>::type>;

template <class T>
struct is_integral : false_type {};
template <class T>
struct is_floating_point : false_type {};
#define SIMT_IS(trait, T) \
  template <>             \
  struct trait<T> : true_type {};
SIMT_IS(is_integral, bool)
SIMT_IS(is_integral, char)
SIMT_IS(is_integral, signed char)
SIMT_IS(is_integral, unsigned char)
SIMT_IS(is_integral, short)
SIMT_IS(is_integral, unsigned short)
SIMT_IS(is_integral, int)
SIMT_IS(is_integral, unsigned int)
SIMT_IS(is_integral, long)
SIMT_IS(is_integral, unsigned long)
SIMT_IS(is_floating_point, float)
SIMT_IS(is_floating_point, half)
SIMT_IS(is_floating_point, bfloat)
#undef SIMT_IS

template <class T>
constexpr SIMT_STATIC_CONST bool is_integral_v = is_integral<T>::value;
template <class T>
constexpr SIMT_STATIC_CONST bool is_floating_point_v =
    is_floating_point<T>::value;

template <class From, class To>
struct is_convertible : bool_constant<__is_convertible_to(From, To)> {};
template <class From, class To>
constexpr SIMT_STATIC_CONST bool is_convertible_v =
    is_convertible<From, To>::value;

// The same bits as another type. Not a constant expression, because vec is not
// trivially copyable (vec.h says why).
template <class To, class From>
SIMT_DEVICE inline To as_type(From from) {
  static_assert(sizeof(To) == sizeof(From), "as_type needs equal sizes");
  To to;
  SIMT_COPY((thread void*)&to, (thread void*)&from, sizeof(To));
  return to;
}

}  // namespace metal
