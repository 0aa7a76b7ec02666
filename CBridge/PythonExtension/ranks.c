// Copyright the lowrank_swift authors. SPDX-License-Identifier: Apache-2.0
//
// What rank allocation needs beside the spectra: lists of numbers in and out, and a weight's bytes from and to elsewhere.
#include <errno.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "native.h"

/// The memory of a bytes object that holds `*count` numbers of 8 bytes, or NULL after a failure. -1 as `*count` is filled in.
static const char *numbers(native_call *call, PyObject *object, const char *name, Py_ssize_t *count) {
  char *data = NULL;
  Py_ssize_t size = 0;
  if (call->failed) {
    return NULL;
  }
  if (!PyBytes_Check(object)) {
    native_raise_type_error(name, "bytes", object);
  } else if (PyBytes_AsStringAndSize(object, &data, &size) == 0 && size % 8 != 0) {
    PyErr_Format(PyExc_ValueError, "%s: expected numbers of 8 bytes, got %zd bytes", name, size);
  } else if (data != NULL && *count >= 0 && size != 8 * *count) {
    PyErr_Format(PyExc_ValueError, "%s: expected %zd numbers, got %zd bytes", name, *count, size);
  }
  call->failed = PyErr_Occurred() != NULL;
  *count = size / 8;
  return call->failed ? NULL : data;
}

PyObject *native_allocate_ranks(PyObject *module, PyObject *const *args, Py_ssize_t count) {
  native_call call;
  if (!native_begin(&call, module, "allocate_ranks", count, 7)) {
    return NULL;
  }
  Py_ssize_t layer_count = -1, value_count = -1;
  const char *values = numbers(&call, args[0], "values", &value_count);
  const char *counts = numbers(&call, args[1], "counts", &layer_count);
  const char *norms = numbers(&call, args[2], "norms", &layer_count);
  const char *limits = numbers(&call, args[3], "limits", &layer_count);
  const char *costs = numbers(&call, args[4], "costs", &layer_count);
  int64_t rank_min = native_int64(&call, args[5], "rank_min");
  int64_t budget = native_int64(&call, args[6], "budget");
  size_t room = call.failed ? 1 : (size_t)layer_count + 1;
  lr_layer_spectrum_t *layers = calloc(room, sizeof *layers);
  int64_t *ranks = calloc(room, sizeof *ranks), unspent = 0, undecided = 0;
  if (layers == NULL || ranks == NULL) {
    PyErr_NoMemory();
    call.failed = true;
  }
  Py_ssize_t begin = 0;
  for (Py_ssize_t i = 0; i < layer_count && !call.failed; i++) {
    // The bytes are aligned to their object's header only as far as 8, and that is what these numbers need.
    layers[i].values = (const double *)(const void *)values + begin;
    memcpy(&layers[i].count, counts + 8 * i, 8);
    memcpy(&layers[i].norm, norms + 8 * i, 8);
    memcpy(&layers[i].rank_max, limits + 8 * i, 8);
    memcpy(&layers[i].cost, costs + 8 * i, 8);
    if (layers[i].count < 0 || layers[i].count > value_count - begin) {
      PyErr_Format(PyExc_ValueError, "counts: expected counts of %zd values, got more", value_count);
      call.failed = true;
    } else {
      begin += (Py_ssize_t)layers[i].count;
    }
  }
  NATIVE_RUN(&call, lr_allocate_ranks(layers, layer_count, rank_min, budget, ranks, &unspent, &undecided));
  PyObject *result = NULL;
  if (native_finish(&call)) {
    PyObject *list = PyList_New(layer_count);
    for (Py_ssize_t i = 0; list != NULL && i < layer_count; i++) {
      PyObject *rank = PyLong_FromLongLong(ranks[i]);
      if (rank == NULL || PyList_SetItem(list, i, rank) != 0) {
        Py_CLEAR(list);
      }
    }
    result = list == NULL ? NULL : Py_BuildValue("(NLL)", list, (long long)unspent, (long long)undecided);
  }
  free(layers);
  free(ranks);
  return result;
}

/// The sizes and strides of a vector or matrix of elements that this package knows. Returns false with an exception set.
static bool as_matrix(native_call *call, const DLTensor *tensor, const char *name, bool is_on_host, int64_t shape[2],
                      int64_t strides[2]) {
  if (call->failed) {
    return false;
  }
  if (tensor->ndim < 1 || tensor->ndim > 2) {
    PyErr_Format(PyExc_ValueError, "%s: expected 1 or 2 dimensions, got %d", name, tensor->ndim);
  } else if (is_on_host && tensor->device.device_type == kDLCUDA) {
    PyErr_Format(PyExc_BufferError, "%s: expected memory on the CPU, got memory on CUDA device %d", name,
                 (int)tensor->device.device_id);
  } else if (native_dtype_name(tensor->dtype) == NULL) {
    PyErr_Format(PyExc_TypeError, "%s: expected float32, float64, bfloat16 or float16, got another dtype", name);
  }
  call->failed = PyErr_Occurred() != NULL;
  if (call->failed) {
    return false;
  }
  int32_t last = tensor->ndim - 1;
  shape[0] = last == 0 ? 1 : tensor->shape[0];
  shape[1] = tensor->shape[last];
  strides[1] = tensor->strides == NULL ? 1 : tensor->strides[last];
  strides[0] = last == 0 ? 0 : tensor->strides == NULL ? shape[1] : tensor->strides[0];
  return true;
}

PyObject *native_contents(PyObject *module, PyObject *const *args, Py_ssize_t count) {
  native_call call;
  if (!native_begin(&call, module, "contents", count, 2)) {
    return NULL;
  }
  const char *name = native_string(&call, args[1], "name");
  const DLTensor *tensor = native_borrow(&call, args[0], name, NATIVE_READ);
  int64_t shape[2], strides[2], elements, bytes;
  PyObject *result = NULL;
  if (as_matrix(&call, tensor, name, false, shape, strides)) {
    int64_t size = tensor->dtype.bits / 8;
    if (__builtin_mul_overflow(shape[0], shape[1], &elements) || __builtin_mul_overflow(elements, size, &bytes)) {
      PyErr_NoMemory();
    } else {
      result = PyBytes_FromStringAndSize(NULL, (Py_ssize_t)bytes);
    }
    call.failed = result == NULL;
    if (result != NULL && bytes > 0 && tensor->device.device_type == kDLCUDA) {
      NATIVE_RUN(&call, lr_cuda_read(tensor, PyBytes_AsString(result)));
    } else if (result != NULL && bytes > 0) {
      char *target = PyBytes_AsString(result);
      const char *source = (const char *)tensor->data + tensor->byte_offset;
      Py_BEGIN_ALLOW_THREADS
      for (int64_t i = 0; i < shape[0]; i++) {
        const char *line = source + i * strides[0] * size;
        if (strides[1] == 1) {
          memcpy(target, line, (size_t)(shape[1] * size));
          target += shape[1] * size;
        }
        for (int64_t j = 0; j < shape[1] && strides[1] != 1; j++, target += size) {
          memcpy(target, line + j * strides[1] * size, (size_t)size);
        }
      }
      Py_END_ALLOW_THREADS
    }
  }
  if (!native_finish(&call)) {
    Py_CLEAR(result);
  }
  return result;
}

PyObject *native_read_file(PyObject *module, PyObject *const *args, Py_ssize_t count) {
  native_call call;
  if (!native_begin(&call, module, "read_file", count, 3)) {
    return NULL;
  }
  int32_t descriptor = native_int32(&call, args[0], "descriptor");
  int64_t offset = native_int64(&call, args[1], "offset");
  const DLTensor *out = native_borrow(&call, args[2], "out", NATIVE_WRITE);
  int64_t shape[2], strides[2];
  if (as_matrix(&call, out, "out", true, shape, strides)) {
    if (shape[0] > 0 && shape[1] > 0 && (strides[1] != 1 || (shape[0] > 1 && strides[0] != shape[1]))) {
      PyErr_SetString(PyExc_ValueError, "out: expected a contiguous tensor, got one with other strides");
      call.failed = true;
    }
    size_t left = (size_t)shape[0] * (size_t)shape[1] * (out->dtype.bits / 8);
    char *target = (char *)out->data + out->byte_offset;
    while (left > 0 && !call.failed) {
      ssize_t got;
      Py_BEGIN_ALLOW_THREADS
      got = pread(descriptor, target, left < (1u << 30) ? left : 1u << 30, (off_t)offset);
      Py_END_ALLOW_THREADS
      if (got > 0) {
        left -= (size_t)got;
        target += got;
        offset += got;
      } else if (got == 0) {
        PyErr_Format(PyExc_ValueError, "descriptor: expected %zu more bytes, got the end of the file", left);
        call.failed = true;
      } else if (errno != EINTR || PyErr_CheckSignals() != 0) {
        if (!PyErr_Occurred()) {
          PyErr_SetFromErrno(PyExc_OSError);
        }
        call.failed = true;
      }
    }
  }
  if (!native_finish(&call)) {
    return NULL;
  }
  Py_RETURN_NONE;
}
