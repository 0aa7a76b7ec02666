// Copyright the lowrank_swift authors. SPDX-License-Identifier: Apache-2.0
//
// One function per lr_* function, with the names and arguments of python/lowrank_swift/_native.pyi.
#include "native.h"

enum { READ_OR_NONE = NATIVE_READ | NATIVE_OPTIONAL, WRITE_OR_NONE = NATIVE_WRITE | NATIVE_OPTIONAL };

static PyObject *finish_with_none(native_call *call) {
  if (!native_finish(call)) {
    return NULL;
  }
  Py_RETURN_NONE;
}

static PyObject *check_weight(PyObject *module, PyObject *const *args, Py_ssize_t count) {
  native_call call;
  if (!native_begin(&call, module, "check_weight", count, 2)) {
    return NULL;
  }
  const DLTensor *weight = native_borrow(&call, args[0], "weight", NATIVE_READ);
  int64_t rank = native_int64(&call, args[1], "rank");
  PyObject *result = NULL;
  if (!call.failed) {
    call.status = lr_check_weight(weight, rank);
    if (call.status == LR_STATUS_OK) {
      result = Py_BuildValue("(LLs)", (long long)weight->shape[0], (long long)weight->shape[1],
                             native_dtype_name(weight->dtype));
      call.failed = result == NULL;
    }
  }
  return native_finish(&call) ? result : NULL;
}

static PyObject *qr(PyObject *module, PyObject *const *args, Py_ssize_t count) {
  native_call call;
  if (!native_begin(&call, module, "qr", count, 4)) {
    return NULL;
  }
  const DLTensor *weight = native_borrow(&call, args[0], "weight", NATIVE_READ);
  int64_t rank = native_int64(&call, args[1], "rank");
  DLTensor *out_q = native_borrow(&call, args[2], "out_q", NATIVE_WRITE);
  DLTensor *out_r = native_borrow(&call, args[3], "out_r", NATIVE_WRITE);
  NATIVE_RUN(&call, lr_qr(weight, rank, out_q, out_r));
  return finish_with_none(&call);
}

static PyObject *ldu(PyObject *module, PyObject *const *args, Py_ssize_t count) {
  native_call call;
  if (!native_begin(&call, module, "ldu", count, 6)) {
    return NULL;
  }
  const DLTensor *weight = native_borrow(&call, args[0], "weight", NATIVE_READ);
  int64_t rank = native_int64(&call, args[1], "rank");
  DLTensor *out_l = native_borrow(&call, args[2], "out_l", NATIVE_WRITE);
  DLTensor *out_d = native_borrow(&call, args[3], "out_d", NATIVE_WRITE);
  DLTensor *out_u = native_borrow(&call, args[4], "out_u", NATIVE_WRITE);
  DLTensor *out_perm = native_borrow(&call, args[5], "out_perm", NATIVE_WRITE);
  NATIVE_RUN(&call, lr_ldu(weight, rank, out_l, out_d, out_u, out_perm));
  return finish_with_none(&call);
}

static PyObject *svd(PyObject *module, PyObject *const *args, Py_ssize_t count) {
  native_call call;
  if (!native_begin(&call, module, "svd", count, 7)) {
    return NULL;
  }
  const DLTensor *weight = native_borrow(&call, args[0], "weight", NATIVE_READ);
  int64_t rank = native_int64(&call, args[1], "rank");
  double tol = native_double(&call, args[2], "tol");
  uint64_t seed = native_uint64(&call, args[3], "seed");
  DLTensor *out_u = native_borrow(&call, args[4], "out_u", NATIVE_WRITE);
  DLTensor *out_s = native_borrow(&call, args[5], "out_s", NATIVE_WRITE);
  DLTensor *out_vh = native_borrow(&call, args[6], "out_vh", NATIVE_WRITE);
  lr_svd_report_t report = {0};
  NATIVE_RUN(&call, lr_svd(weight, rank, tol, seed, out_u, out_s, out_vh, &report));
  return native_finish(&call) ? Py_BuildValue("Ldd", (long long)report.passes, report.tol, report.residual) : NULL;
}

static PyObject *spectrum(PyObject *module, PyObject *const *args, Py_ssize_t count) {
  native_call call;
  if (!native_begin(&call, module, "spectrum", count, 5)) {
    return NULL;
  }
  const DLTensor *weight = native_borrow(&call, args[0], "weight", NATIVE_READ);
  int64_t rank = native_int64(&call, args[1], "rank");
  double tol = native_double(&call, args[2], "tol");
  uint64_t seed = native_uint64(&call, args[3], "seed");
  DLTensor *out_values = native_borrow(&call, args[4], "out_values", NATIVE_WRITE);
  double norm = 0, share = 0;
  NATIVE_RUN(&call, lr_spectrum(weight, rank, tol, seed, out_values, &norm, &share));
  return native_finish(&call) ? Py_BuildValue("(dd)", norm, share) : NULL;
}

static PyObject *initialize(PyObject *module, PyObject *const *args, Py_ssize_t count) {
  native_call call;
  if (!native_begin(&call, module, "initialize", count, 11)) {
    return NULL;
  }
  const char *method = native_string(&call, args[0], "method");
  bool in_place = native_bool(&call, args[4]);
  DLTensor *weight = native_borrow(&call, args[1], "weight", in_place ? NATIVE_WRITE : NATIVE_READ);
  int64_t rank = native_int64(&call, args[2], "rank");
  double scale = native_double(&call, args[3], "scale");
  lr_initialize_options_t options = {
      .tol = native_double(&call, args[5], "tol"),
      .seed = native_uint64(&call, args[6], "seed"),
      .diagonal = native_string(&call, args[7], "diagonal"),
  };
  DLTensor *out_up = native_borrow(&call, args[8], "out_up", NATIVE_WRITE);
  DLTensor *out_core = native_borrow(&call, args[9], "out_core", WRITE_OR_NONE);
  DLTensor *out_down = native_borrow(&call, args[10], "out_down", NATIVE_WRITE);
  NATIVE_RUN(&call, lr_initialize(method, weight, rank, scale, &options, in_place, out_up, out_core, out_down));
  return finish_with_none(&call);
}

static PyObject *adapter_forward(PyObject *module, PyObject *const *args, Py_ssize_t count) {
  native_call call;
  if (!native_begin(&call, module, "adapter_forward", count, 7)) {
    return NULL;
  }
  const DLTensor *x = native_borrow(&call, args[0], "x", NATIVE_READ);
  const DLTensor *down = native_borrow(&call, args[1], "down", READ_OR_NONE);
  const DLTensor *core = native_borrow(&call, args[2], "core", READ_OR_NONE);
  const DLTensor *up = native_borrow(&call, args[3], "up", NATIVE_READ);
  double scale = native_double(&call, args[4], "scale");
  DLTensor *out = native_borrow(&call, args[5], "out", NATIVE_WRITE);
  DLTensor *out_h = native_borrow(&call, args[6], "out_h", WRITE_OR_NONE);
  NATIVE_RUN(&call, lr_adapter_forward(x, down, core, up, scale, out, out_h));
  return finish_with_none(&call);
}

static PyObject *adapter_backward(PyObject *module, PyObject *const *args, Py_ssize_t count) {
  native_call call;
  if (!native_begin(&call, module, "adapter_backward", count, 12)) {
    return NULL;
  }
  const DLTensor *grad = native_borrow(&call, args[0], "grad", NATIVE_READ);
  const DLTensor *x = native_borrow(&call, args[1], "x", READ_OR_NONE);
  const DLTensor *h = native_borrow(&call, args[2], "h", READ_OR_NONE);
  const DLTensor *down = native_borrow(&call, args[3], "down", READ_OR_NONE);
  const DLTensor *core = native_borrow(&call, args[4], "core", READ_OR_NONE);
  const DLTensor *up = native_borrow(&call, args[5], "up", NATIVE_READ);
  double scale = native_double(&call, args[6], "scale");
  int64_t frozen_columns = native_int64(&call, args[7], "frozen_columns");
  DLTensor *out_x = native_borrow(&call, args[8], "out_x", WRITE_OR_NONE);
  DLTensor *out_down = native_borrow(&call, args[9], "out_down", WRITE_OR_NONE);
  DLTensor *out_core = native_borrow(&call, args[10], "out_core", WRITE_OR_NONE);
  DLTensor *out_up = native_borrow(&call, args[11], "out_up", WRITE_OR_NONE);
  NATIVE_RUN(&call, lr_adapter_backward(grad, x, h, down, core, up, scale, frozen_columns, out_x, out_down, out_core,
                                        out_up));
  return finish_with_none(&call);
}

static PyObject *effective_up(PyObject *module, PyObject *const *args, Py_ssize_t count) {
  native_call call;
  if (!native_begin(&call, module, "effective_up", count, 4)) {
    return NULL;
  }
  const DLTensor *up = native_borrow(&call, args[0], "up", NATIVE_READ);
  const DLTensor *core = native_borrow(&call, args[1], "core", READ_OR_NONE);
  const DLTensor *start = native_borrow(&call, args[2], "start", READ_OR_NONE);
  DLTensor *out = native_borrow(&call, args[3], "out", NATIVE_WRITE);
  NATIVE_RUN(&call, lr_effective_up(up, core, start, out));
  return finish_with_none(&call);
}

static PyObject *effective_up_backward(PyObject *module, PyObject *const *args, Py_ssize_t count) {
  native_call call;
  if (!native_begin(&call, module, "effective_up_backward", count, 6)) {
    return NULL;
  }
  const DLTensor *grad = native_borrow(&call, args[0], "grad", NATIVE_READ);
  const DLTensor *up = native_borrow(&call, args[1], "up", NATIVE_READ);
  const DLTensor *core = native_borrow(&call, args[2], "core", READ_OR_NONE);
  int64_t frozen_columns = native_int64(&call, args[3], "frozen_columns");
  DLTensor *out_up = native_borrow(&call, args[4], "out_up", WRITE_OR_NONE);
  DLTensor *out_core = native_borrow(&call, args[5], "out_core", WRITE_OR_NONE);
  NATIVE_RUN(&call, lr_effective_up_backward(grad, up, core, frozen_columns, out_up, out_core));
  return finish_with_none(&call);
}

static PyObject *base_product(PyObject *module, PyObject *const *args, Py_ssize_t count) {
  native_call call;
  if (!native_begin(&call, module, "base_product", count, 4)) {
    return NULL;
  }
  const DLTensor *x = native_borrow(&call, args[0], "x", NATIVE_READ);
  const DLTensor *weight = native_borrow(&call, args[1], "weight", NATIVE_READ);
  const DLTensor *bias = native_borrow(&call, args[2], "bias", READ_OR_NONE);
  DLTensor *out = native_borrow(&call, args[3], "out", NATIVE_WRITE);
  NATIVE_RUN(&call, lr_base_product(x, weight, bias, out));
  return finish_with_none(&call);
}

static PyObject *change_forward(PyObject *module, PyObject *const *args, Py_ssize_t count) {
  native_call call;
  if (!native_begin(&call, module, "change_forward", count, 8)) {
    return NULL;
  }
  const DLTensor *x = native_borrow(&call, args[0], "x", NATIVE_READ);
  const DLTensor *down = native_borrow(&call, args[1], "down", NATIVE_READ);
  const DLTensor *up = native_borrow(&call, args[2], "up", NATIVE_READ);
  const DLTensor *start_down = native_borrow(&call, args[3], "start_down", NATIVE_READ);
  const DLTensor *start_up = native_borrow(&call, args[4], "start_up", NATIVE_READ);
  double scale = native_double(&call, args[5], "scale");
  DLTensor *out = native_borrow(&call, args[6], "out", NATIVE_WRITE);
  DLTensor *out_h = native_borrow(&call, args[7], "out_h", NATIVE_WRITE);
  NATIVE_RUN(&call, lr_change_forward(x, down, up, start_down, start_up, scale, out, out_h));
  return finish_with_none(&call);
}

static PyObject *change_backward(PyObject *module, PyObject *const *args, Py_ssize_t count) {
  native_call call;
  if (!native_begin(&call, module, "change_backward", count, 11)) {
    return NULL;
  }
  const DLTensor *grad = native_borrow(&call, args[0], "grad", NATIVE_READ);
  const DLTensor *x = native_borrow(&call, args[1], "x", READ_OR_NONE);
  const DLTensor *h = native_borrow(&call, args[2], "h", READ_OR_NONE);
  const DLTensor *down = native_borrow(&call, args[3], "down", NATIVE_READ);
  const DLTensor *up = native_borrow(&call, args[4], "up", NATIVE_READ);
  const DLTensor *start_down = native_borrow(&call, args[5], "start_down", NATIVE_READ);
  const DLTensor *start_up = native_borrow(&call, args[6], "start_up", NATIVE_READ);
  double scale = native_double(&call, args[7], "scale");
  DLTensor *out_x = native_borrow(&call, args[8], "out_x", WRITE_OR_NONE);
  DLTensor *out_down = native_borrow(&call, args[9], "out_down", WRITE_OR_NONE);
  DLTensor *out_up = native_borrow(&call, args[10], "out_up", WRITE_OR_NONE);
  NATIVE_RUN(&call, lr_change_backward(grad, x, h, down, up, start_down, start_up, scale, out_x, out_down, out_up));
  return finish_with_none(&call);
}

static PyObject *merge(PyObject *module, PyObject *const *args, Py_ssize_t count) {
  native_call call;
  if (!native_begin(&call, module, "merge", count, 5)) {
    return NULL;
  }
  DLTensor *weight = native_borrow(&call, args[0], "weight", NATIVE_WRITE);
  const DLTensor *down = native_borrow(&call, args[1], "down", NATIVE_READ);
  const DLTensor *core = native_borrow(&call, args[2], "core", READ_OR_NONE);
  const DLTensor *up = native_borrow(&call, args[3], "up", NATIVE_READ);
  double scale = native_double(&call, args[4], "scale");
  NATIVE_RUN(&call, lr_merge(weight, down, core, up, scale));
  return finish_with_none(&call);
}

static PyObject *set_num_threads(PyObject *module, PyObject *const *args, Py_ssize_t count) {
  native_call call;
  if (!native_begin(&call, module, "set_num_threads", count, 1)) {
    return NULL;
  }
  int32_t threads = native_int32(&call, args[0], "count");
  NATIVE_RUN(&call, lr_set_num_threads(threads));
  return finish_with_none(&call);
}

static PyObject *get_num_threads(PyObject *module, PyObject *unused) {
  (void)module;
  (void)unused;
  return PyLong_FromLong(lr_get_num_threads());
}

static PyObject *config(PyObject *module, PyObject *unused) {
  (void)module;
  (void)unused;
  return PyUnicode_FromString(lr_config());
}

static PyObject *warmup(PyObject *module, PyObject *const *args, Py_ssize_t count) {
  native_call call;
  if (!native_begin(&call, module, "warmup", count, 2)) {
    return NULL;
  }
  int32_t device = native_int32(&call, args[0], "device");
  uint64_t stream = native_uint64(&call, args[1], "stream");
  if (!call.failed) {
    call.status = lr_cuda_set_stream(device, (void *)(uintptr_t)stream);
  }
  if (call.status == LR_STATUS_OK) {
    NATIVE_RUN(&call, lr_cuda_warmup(device));
  }
  return finish_with_none(&call);
}

static PyObject *test_status(PyObject *module, PyObject *const *args, Py_ssize_t count) {
  native_call call;
  if (!native_begin(&call, module, "_test_status", count, 1)) {
    return NULL;
  }
  int32_t status = native_int32(&call, args[0], "status");
  NATIVE_RUN(&call, lr_test_status(status));
  return finish_with_none(&call);
}

#define FAST(function) ((PyCFunction)(void (*)(void))(function)), METH_FASTCALL

PyMethodDef native_methods[] = {
    {"borrow", FAST(native_borrow_as_tensor),
     "borrow(array, name, /)\n--\n\nThe memory of an object with __dlpack__ as a Tensor."},
    {"check_weight", FAST(check_weight), "check_weight(weight, rank, /)\n--\n\nRows, columns and dtype of a weight."},
    {"qr", FAST(qr), "qr(weight, rank, out_q, out_r, /)\n--\n\nTruncated QR."},
    {"ldu", FAST(ldu), "ldu(weight, rank, out_l, out_d, out_u, out_perm, /)\n--\n\nTruncated LDU."},
    {"svd", FAST(svd),
     "svd(weight, rank, tol, seed, out_u, out_s, out_vh, /)\n--\n\nTruncated SVD; passes, tolerance and residual."},
    {"spectrum", FAST(spectrum),
     "spectrum(weight, rank, tol, seed, out_values, /)\n--\n\nLeading singular values; the norm and their share of it."},
    {"allocate_ranks", FAST(native_allocate_ranks),
     "allocate_ranks(values, counts, norms, limits, costs, rank_min, budget, /)\n--\n\n"
     "Ranks from spectra; what is unspent, and a layer that is undecided or -1."},
    {"contents", FAST(native_contents), "contents(array, name, /)\n--\n\nThe elements' bytes, row by row."},
    {"read_file", FAST(native_read_file),
     "read_file(descriptor, offset, out, /)\n--\n\nFills a contiguous tensor with bytes of a file."},
    {"initialize", FAST(initialize),
     "initialize(method, weight, rank, scale, in_place, tol, seed, diagonal, out_up, out_core, out_down, /)\n--\n\n"
     "Starting factors of a method."},
    {"adapter_forward", FAST(adapter_forward),
     "adapter_forward(x, down, core, up, scale, out, out_h, /)\n--\n\nAdds an adapter's output to out."},
    {"adapter_backward", FAST(adapter_backward),
     "adapter_backward(grad, x, h, down, core, up, scale, frozen_columns, out_x, out_down, out_core, out_up, /)\n--\n\n"
     "Gradients of adapter_forward."},
    {"effective_up", FAST(effective_up), "effective_up(up, core, start, out, /)\n--\n\nout = up core - start."},
    {"effective_up_backward", FAST(effective_up_backward),
     "effective_up_backward(grad, up, core, frozen_columns, out_up, out_core, /)\n--\n\nGradients of effective_up."},
    {"base_product", FAST(base_product),
     "base_product(x, weight, bias, out, /)\n--\n\nout = x weight^T + bias of float32 tensors, by OpenBLAS."},
    {"change_forward", FAST(change_forward),
     "change_forward(x, down, up, start_down, start_up, scale, out, out_h, /)\n--\n\n"
     "Adds what an adapter has changed to out."},
    {"change_backward", FAST(change_backward),
     "change_backward(grad, x, h, down, up, start_down, start_up, scale, out_x, out_down, out_up, /)\n--\n\n"
     "Gradients of change_forward."},
    {"merge", FAST(merge), "merge(weight, down, core, up, scale, /)\n--\n\nAdds an adapter to a weight."},
    {"set_num_threads", FAST(set_num_threads),
     "set_num_threads(count, /)\n--\n\n"
     "Sets the number of threads for the calls that follow, in the whole process; 0 returns to the default.\n\n"
     "Args:\n    count (int): ``0 <= count <= 4096``.\n\nRaises:\n    ValueError: if ``count`` is out of range."},
    {"get_num_threads", get_num_threads, METH_NOARGS,
     "get_num_threads()\n--\n\nReturns the number of threads that the next call may use."},
    {"config", config, METH_NOARGS, "config()\n--\n\nVersion, instruction set, BLAS and threads as a JSON object."},
    {"warmup", FAST(warmup), "warmup(device, stream, /)\n--\n\nMakes a CUDA device ready."},
    {"_test_status", FAST(test_status), "_test_status(status, /)\n--\n\nFails with a status, for tests."},
    {NULL, NULL, 0, NULL},
};
