// Copyright the lowrank_swift authors. SPDX-License-Identifier: Apache-2.0
#include <string.h>

#include "native.h"

bool native_begin(native_call *call, PyObject *module, const char *function, Py_ssize_t count, Py_ssize_t expected) {
  if (count != expected) {
    PyErr_Format(PyExc_TypeError, "%s: expected %zd positional arguments, got %zd", function, expected, count);
    return false;
  }
  *call = (native_call){.state = native_get_state(module), .status = LR_STATUS_OK, .cuda_device = -1};
  return true;
}

static void ignore_error(void *context, const char *kind, const char *message) {
  (void)context;
  (void)kind;
  (void)message;
}

// Called without the GIL, as the framework's allocator may be.
static int32_t allocate_tensor(void *context, int32_t device, uint64_t bytes, void **out_memory, void **out_block) {
  const DLPackExchangeAPI *framework = context;
  int64_t size = (int64_t)bytes, stride = 1;
  DLTensor prototype = {.device = {kDLCUDA, device}, .ndim = 1, .dtype = {kDLUInt, 8, 1}, .shape = &size, .strides = &stride};
  DLManagedTensorVersioned *managed = NULL;
  if (framework->managed_tensor_allocator(&prototype, &managed, NULL, ignore_error) != 0 || managed == NULL) {
    return -1;
  }
  *out_memory = (char *)managed->dl_tensor.data + managed->dl_tensor.byte_offset;
  *out_block = managed;
  return 0;
}

static void release_tensor(void *context, void *block) {
  (void)context;
  DLManagedTensorVersioned *managed = block;
  if (managed->deleter != NULL) {
    managed->deleter(managed);
  }
}

void native_enter_device(const native_call *call) {
  if (call->framework != NULL) {
    lr_cuda_allocator_t allocator = {allocate_tensor, release_tensor, (void *)call->framework};
    lr_cuda_set_allocator(&allocator);
  }
}

void native_leave_device(native_call *call) {
  if (call->framework != NULL) {
    lr_cuda_set_allocator(NULL);
  }
  if (call->waits) {
    // Also after a failure: what was enqueued before it may use memory that the caller frees.
    lr_status_t status = lr_cuda_synchronize(call->cuda_device);
    if (call->status == LR_STATUS_OK) {
      call->status = status;
    }
  }
}

bool native_finish(native_call *call) {
  if (!call->failed && call->status != LR_STATUS_OK) {
    native_raise_status(call->state, call->status);
    call->failed = true;
  }
  // A deleter may run Python code, which must not see our exception.
  PyObject *type, *value, *traceback;
  PyErr_Fetch(&type, &value, &traceback);
  for (int i = 0; i < call->tensor_count; i++) {
    native_release(&call->tensors[i]);
  }
  PyErr_Restore(type, value, traceback);
  return !call->failed;
}

/// The object as a Python int (new reference), or NULL after a failure.
static PyObject *as_index(native_call *call, PyObject *object, const char *name) {
  if (call->failed) {
    return NULL;
  }
  // A bool is an int to Python, but as a rank or a seed it is a mistake.
  PyObject *index = PyBool_Check(object) ? NULL : PyNumber_Index(object);
  if (index == NULL) {
    call->failed = true;
    if (!PyErr_Occurred() || PyErr_ExceptionMatches(PyExc_TypeError)) {
      PyErr_Clear();
      native_raise_type_error(name, "an int", object);
    }
  }
  return index;
}

static int64_t integer_within(native_call *call, PyObject *object, const char *name, int bits) {
  PyObject *index = as_index(call, object, name);
  if (index == NULL) {
    return 0;
  }
  int overflow = 0;
  long long value = PyLong_AsLongLongAndOverflow(index, &overflow);
  if (overflow != 0 || (bits == 32 && (value < INT32_MIN || value > INT32_MAX))) {
    PyErr_Format(PyExc_ValueError, "%s: expected an int of at most %d bits, got %S", name, bits, index);
    call->failed = true;
  }
  Py_DECREF(index);
  return value;
}

int64_t native_int64(native_call *call, PyObject *object, const char *name) {
  return integer_within(call, object, name, 64);
}

int32_t native_int32(native_call *call, PyObject *object, const char *name) {
  return (int32_t)integer_within(call, object, name, 32);
}

uint64_t native_uint64(native_call *call, PyObject *object, const char *name) {
  PyObject *index = as_index(call, object, name);
  if (index == NULL) {
    return 0;
  }
  unsigned long long value = PyLong_AsUnsignedLongLong(index);
  if (PyErr_Occurred()) {
    PyErr_Clear();
    PyErr_Format(PyExc_ValueError, "%s: expected 0 <= %s < 2**64, got %S", name, name, index);
    call->failed = true;
  }
  Py_DECREF(index);
  return value;
}

double native_double(native_call *call, PyObject *object, const char *name) {
  if (call->failed) {
    return 0;
  }
  double value = PyFloat_AsDouble(object);
  if (value == -1 && PyErr_Occurred()) {
    call->failed = true;
    if (PyErr_ExceptionMatches(PyExc_TypeError)) {
      PyErr_Clear();
      native_raise_type_error(name, "a float", object);
    } else if (PyErr_ExceptionMatches(PyExc_OverflowError)) {
      PyErr_Clear();
      PyErr_Format(PyExc_ValueError, "%s: expected a number within the range of float64, got %S", name, object);
    }
  }
  return value;
}

bool native_bool(native_call *call, PyObject *object) {
  if (call->failed) {
    return false;
  }
  int value = PyObject_IsTrue(object);
  call->failed = value < 0;
  return value > 0;
}

const char *native_string(native_call *call, PyObject *object, const char *name) {
  if (call->failed) {
    return NULL;
  }
  if (!PyUnicode_Check(object)) {
    native_raise_type_error(name, "a str", object);
    call->failed = true;
    return NULL;
  }
  Py_ssize_t length;
  const char *text = PyUnicode_AsUTF8AndSize(object, &length);
  if (text == NULL && PyErr_ExceptionMatches(PyExc_UnicodeError)) {
    PyErr_Clear();
    PyErr_Format(PyExc_ValueError, "%s: expected text that UTF-8 can encode, got %R", name, object);
  } else if (text != NULL && strlen(text) != (size_t)length) {
    PyErr_Format(PyExc_ValueError, "%s: expected text without a null character, got %R", name, object);
    text = NULL;
  }
  call->failed = text == NULL;
  return text;
}
