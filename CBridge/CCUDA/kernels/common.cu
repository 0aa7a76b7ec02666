// Copyright the lowrank_swift authors. SPDX-License-Identifier: Apache-2.0
//
// What all kernels use. No header is included, so that NVRTC needs none. A kernel is written `LR_KERNEL(name) { ... }` and
// reads `arguments`, an lr_<name>_arguments. Blocks have LR_THREADS threads along x.
//
// With LR_HOST the same text is compiled for the host by a test double of CUDA, which declares LR_KERNEL itself: what only a
// device has needs another way then.

#define LR_DEVICE static __device__ __forceinline__
#ifndef LR_HOST
// With registers for two blocks at a time, one of which computes while the other waits for memory.
#define LR_KERNEL(name)                      \
  extern "C" __launch_bounds__(LR_THREADS, 2) \
  __global__ void name(const __grid_constant__ name##_arguments arguments)
#endif

// MARK: 16-bit numbers

LR_DEVICE float lr_from_bfloat16(unsigned short bits) { return __uint_as_float((unsigned)bits << 16); }

/// To the nearest, ties to even.
LR_DEVICE unsigned short lr_to_bfloat16(float value) {
  unsigned bits = __float_as_uint(value);
  if (value != value) return (unsigned short)((bits >> 16) | 0x40);
  return (unsigned short)((bits + 0x7fff + ((bits >> 16) & 1)) >> 16);
}

LR_DEVICE float lr_from_float16(unsigned short bits) {
#ifdef LR_HOST
  return (float)__builtin_bit_cast(_Float16, bits);
#else
  float value;
  asm("cvt.f32.f16 %0, %1;" : "=f"(value) : "h"(bits));
  return value;
#endif
}

LR_DEVICE unsigned short lr_to_float16(float value) {
#ifdef LR_HOST
  return __builtin_bit_cast(unsigned short, (_Float16)value);
#else
  unsigned short bits;
  asm("cvt.rn.f16.f32 %0, %1;" : "=h"(bits) : "f"(value));
  return bits;
#endif
}

// MARK: Elements of views

// What memory holds of 16-bit numbers.
struct lr_bfloat16 { unsigned short bits; };
struct lr_float16 { unsigned short bits; };

template <class Scalar> LR_DEVICE Scalar lr_value(float element) { return (Scalar)element; }
template <class Scalar> LR_DEVICE Scalar lr_value(double element) { return (Scalar)element; }
template <class Scalar> LR_DEVICE Scalar lr_value(lr_bfloat16 element) { return (Scalar)lr_from_bfloat16(element.bits); }
template <class Scalar> LR_DEVICE Scalar lr_value(lr_float16 element) { return (Scalar)lr_from_float16(element.bits); }

template <class Scalar> LR_DEVICE void lr_assign(float &element, Scalar value) { element = (float)value; }
template <class Scalar> LR_DEVICE void lr_assign(double &element, Scalar value) { element = (double)value; }
template <class Scalar> LR_DEVICE void lr_assign(lr_bfloat16 &element, Scalar value) {
  element.bits = lr_to_bfloat16((float)value);
}
template <class Scalar> LR_DEVICE void lr_assign(lr_float16 &element, Scalar value) {
  element.bits = lr_to_float16((float)value);
}

/// A statement for the Element of a type, so that loops inside of it choose nothing.
#define LR_WITH_ELEMENT(type, ...)                                      \
  switch (type) {                                                       \
    case LR_FLOAT32: { using Element = float; __VA_ARGS__; break; }     \
    case LR_FLOAT64: { using Element = double; __VA_ARGS__; break; }    \
    case LR_BFLOAT16: { using Element = lr_bfloat16; __VA_ARGS__; break; } \
    default: { using Element = lr_float16; __VA_ARGS__; break; }        \
  }

template <class Scalar> LR_DEVICE Scalar lr_load(const lr_view &view, long long i, long long j) {
  long long offset = i * view.row_stride + j * view.column_stride;
  LR_WITH_ELEMENT(view.type, return lr_value<Scalar>(((const Element *)view.address)[offset]));
  return 0;
}

template <class Scalar> LR_DEVICE void lr_store(const lr_view &view, long long i, long long j, Scalar value) {
  long long offset = i * view.row_stride + j * view.column_stride;
  LR_WITH_ELEMENT(view.type, lr_assign(((Element *)view.address)[offset], value));
}

template <class Scalar> LR_DEVICE bool lr_is_finite(Scalar value) { return value - value == 0; }

/// In bytes.
LR_DEVICE int lr_element_size(int type) { return type == LR_FLOAT64 ? 8 : type == LR_FLOAT32 ? 4 : 2; }

// All threads of all blocks go through the positions row * columns + column of a view side by side.

LR_DEVICE long long lr_first_position() { return (long long)blockIdx.x * LR_THREADS + threadIdx.x; }

LR_DEVICE long long lr_position_step() { return (long long)gridDim.x * LR_THREADS; }

/// Row and column of a position. Division of 32-bit numbers takes a fraction of the time.
LR_DEVICE void lr_split_position(long long position, long long columns, long long *row, long long *column) {
  if ((unsigned long long)(position | columns) >> 32 == 0) {
    *row = (unsigned)position / (unsigned)columns;
    *column = (unsigned)position % (unsigned)columns;
  } else {
    *row = position / columns;
    *column = position % columns;
  }
}

/// For each position of a view, with its row and column.
#define LR_FOR_EACH_ELEMENT(view, position, row, column)                                                                 \
  for (long long position = lr_first_position(), row, column;                                                            \
       position < (view).rows * (view).columns && (lr_split_position(position, (view).columns, &row, &column), true);    \
       position += lr_position_step())

// MARK: Groups of elements

/// Neighbours in a row. Where they lie side by side and begin at a multiple of 16 bytes, they are read and written 16 bytes at a
/// time.
template <class Element, int size = LR_GROUP> struct __align__(16) lr_group { Element at[size]; };

struct __align__(16) lr_quad { unsigned at[4]; };

template <class Element, int size> LR_DEVICE bool lr_is_group(const Element *first, long long stride, long long count) {
  return size * sizeof(Element) % 16 == 0 && count >= size && stride == 1 && (unsigned long long)first % 16 == 0;
}

/// How many elements of a view follow from (i, j) on, which may be outside of it.
LR_DEVICE long long lr_count_from(const lr_view &view, long long i, long long j) {
  return i < view.rows ? view.columns - j : 0;
}

/// The first `count` elements from (i, j) on, and zeros.
template <class Element, int size>
LR_DEVICE void lr_read_group(lr_group<Element, size> &to, const lr_view &view, long long i, long long j, long long count) {
  const Element *first = (const Element *)view.address + i * view.row_stride + j * view.column_stride;
  if (lr_is_group<Element, size>(first, view.column_stride, count)) {
#pragma unroll
    for (unsigned k = 0; k < sizeof(to) / 16; k++) ((lr_quad *)&to)[k] = ((const lr_quad *)first)[k];
  } else {
#pragma unroll
    for (int q = 0; q < size; q++) to.at[q] = q < count ? first[q * view.column_stride] : Element{};
  }
}

template <class Element, int size>
LR_DEVICE void lr_write_group(
    const lr_view &view, long long i, long long j, long long count, const lr_group<Element, size> &group) {
  Element *first = (Element *)view.address + i * view.row_stride + j * view.column_stride;
  if (lr_is_group<Element, size>(first, view.column_stride, count)) {
#pragma unroll
    for (unsigned k = 0; k < sizeof(group) / 16; k++) ((lr_quad *)first)[k] = ((const lr_quad *)&group)[k];
  } else {
#pragma unroll
    for (int q = 0; q < size; q++) {
      if (q < count) first[q * view.column_stride] = group.at[q];
    }
  }
}

template <class Element, class Scalar, int size>
LR_DEVICE void lr_load_elements(Scalar (&to)[size], const lr_view &view, long long i, long long j, long long count) {
  lr_group<Element, size> group;
  lr_read_group(group, view, i, j, count);
#pragma unroll
  for (int q = 0; q < size; q++) to[q] = lr_value<Scalar>(group.at[q]);
}

template <class Element, class Scalar, int size>
LR_DEVICE void lr_store_elements(const lr_view &view, long long i, long long j, long long count, const Scalar (&values)[size]) {
  lr_group<Element, size> group;
#pragma unroll
  for (int q = 0; q < size; q++) lr_assign(group.at[q], values[q]);
  lr_write_group(view, i, j, count, group);
}

/// As lr_read_group, for a view of any type.
template <class Scalar, int size>
LR_DEVICE void lr_load_group(Scalar (&to)[size], const lr_view &view, long long i, long long j, long long count) {
  LR_WITH_ELEMENT(view.type, lr_load_elements<Element>(to, view, i, j, count));
}

template <class Scalar, int size>
LR_DEVICE void lr_store_group(const lr_view &view, long long i, long long j, long long count, const Scalar (&values)[size]) {
  LR_WITH_ELEMENT(view.type, lr_store_elements<Element>(view, i, j, count, values));
}

/// c = alpha * sums + beta * c; c is not read where beta is 0.
template <class Scalar, int size>
LR_DEVICE void lr_update_group(
    const lr_view &c, long long i, long long j, long long count, Scalar alpha, Scalar (&sums)[size], Scalar beta) {
  Scalar old[size] = {};
  if (beta != 0) lr_load_group(old, c, i, j, count);
#pragma unroll
  for (int q = 0; q < size; q++) {
    sums[q] *= alpha;
    if (beta != 0) sums[q] += beta * old[q];
  }
  lr_store_group(c, i, j, count, sums);
}

/// For each group of a view, with the row and column that it begins at and its number of elements, by `threads` threads of which
/// this is `thread`.
#define LR_FOR_EACH_GROUP_OF(view, i, j, count, thread, threads)                                                             \
  for (long long lr_position = (thread), lr_groups = ((view).columns + LR_GROUP - 1) / LR_GROUP, i, j, count;                \
       lr_position < (view).rows * lr_groups &&                                                                              \
       (lr_split_position(lr_position, lr_groups, &i, &j), j *= LR_GROUP,                                                    \
        count = (view).columns - j < LR_GROUP ? (view).columns - j : LR_GROUP, true);                                        \
       lr_position += (threads))

#define LR_FOR_EACH_GROUP(view, i, j, count) \
  LR_FOR_EACH_GROUP_OF(view, i, j, count, lr_first_position(), lr_position_step())
