// Copyright the lowrank_swift authors. SPDX-License-Identifier: Apache-2.0
//
// What all kernels use. No header is included, so that NVRTC needs none. A kernel is written `LR_KERNEL(name) { ... }` and
// reads `arguments`, an lr_<name>_arguments. Blocks have LR_THREADS threads along x.
//
// With LR_HOST the same text is compiled for the host by a test double of CUDA: what only a device has needs another way then.

#define LR_DEVICE static __device__ __forceinline__
#ifdef LR_HOST
#define LR_KERNEL(name) extern "C" __global__ void name(const name##_arguments arguments)
#else
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

template <class Scalar> LR_DEVICE Scalar lr_load(const lr_view &view, long long i, long long j) {
  long long offset = i * view.row_stride + j * view.column_stride;
  switch (view.type) {
    case LR_FLOAT32: return (Scalar)((const float *)view.address)[offset];
    case LR_FLOAT64: return (Scalar)((const double *)view.address)[offset];
    case LR_BFLOAT16: return (Scalar)lr_from_bfloat16(((const unsigned short *)view.address)[offset]);
    default: return (Scalar)lr_from_float16(((const unsigned short *)view.address)[offset]);
  }
}

template <class Scalar> LR_DEVICE void lr_store(const lr_view &view, long long i, long long j, Scalar value) {
  long long offset = i * view.row_stride + j * view.column_stride;
  switch (view.type) {
    case LR_FLOAT32: ((float *)view.address)[offset] = (float)value; break;
    case LR_FLOAT64: ((double *)view.address)[offset] = (double)value; break;
    case LR_BFLOAT16: ((unsigned short *)view.address)[offset] = lr_to_bfloat16((float)value); break;
    default: ((unsigned short *)view.address)[offset] = lr_to_float16((float)value); break;
  }
}

LR_DEVICE bool lr_is_finite(double value) { return value - value == 0; }

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
