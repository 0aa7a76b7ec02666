// Copyright the lowrank_swift authors. SPDX-License-Identifier: Apache-2.0
//
// Tensors in, by the Python side of DLPack 1.x: https://dmlc.github.io/dlpack/latest/python_spec.html
#include "native.h"

static const char *const versioned_name = "dltensor_versioned";
static const char *const unversioned_name = "dltensor";

/// Turns the exporter's own exception into a BufferError that names the argument, with the exception as its cause.
static void raise_export_error(const char *name) {
  if (!PyErr_ExceptionMatches(PyExc_Exception) || PyErr_ExceptionMatches(PyExc_MemoryError)) {
    return;
  }
  PyObject *type, *cause, *traceback;
  PyErr_Fetch(&type, &cause, &traceback);
  PyErr_NormalizeException(&type, &cause, &traceback);
  if (traceback != NULL) {
    PyException_SetTraceback(cause, traceback);
  }
  Py_XDECREF(type);
  Py_XDECREF(traceback);
  PyErr_Format(PyExc_BufferError, "%s: cannot be borrowed through DLPack: %S", name, cause);

  PyObject *value;
  PyErr_Fetch(&type, &value, &traceback);
  PyErr_NormalizeException(&type, &value, &traceback);
  PyException_SetCause(value, cause);
  PyErr_Restore(type, value, traceback);
}

/// Refuses what lives elsewhere before anything is exported, which for a device tensor could wait for its stream.
static bool check_device(PyObject *object, const char *name) {
  PyObject *method = PyObject_GetAttrString(object, "__dlpack_device__");
  if (method == NULL) {
    if (!PyErr_ExceptionMatches(PyExc_AttributeError)) {
      return false;
    }
    PyErr_Clear();  // The library reads the device from the tensor itself.
    return true;
  }
  PyObject *device = PyObject_CallNoArgs(method);
  Py_DECREF(method);
  int type = 0, id = 0;
  bool parsed = device != NULL && PyArg_Parse(device, "(ii)", &type, &id);
  Py_XDECREF(device);
  if (!parsed) {
    raise_export_error(name);
    return false;
  }
  if (type == kDLCPU || type == kDLCUDAHost) {
    return true;
  }
  if (type == kDLCUDA) {
    PyErr_Format(PyExc_BufferError, "%s: expected a tensor on the CPU, got one on CUDA device %d", name, id);
  } else {
    PyErr_Format(PyExc_BufferError, "%s: expected a tensor on the CPU, got one on DLPack device (%d, %d)", name, type,
                 id);
  }
  return false;
}

/// Calls `__dlpack__` for a versioned capsule, or an unversioned one where the exporter is older (new reference).
static PyObject *export_capsule(const native_state *state, PyObject *object, const char *name) {
  PyObject *method = PyObject_GetAttrString(object, "__dlpack__");
  if (method == NULL) {
    if (PyErr_ExceptionMatches(PyExc_AttributeError)) {
      PyErr_Clear();
      native_raise_type_error(name, "a tensor with __dlpack__", object);
    }
    return NULL;
  }
  PyObject *capsule = PyObject_Call(method, state->no_arguments, state->dlpack_arguments);
  if (capsule == NULL && PyErr_ExceptionMatches(PyExc_TypeError)) {
    PyErr_Clear();
    capsule = PyObject_CallNoArgs(method);
  }
  Py_DECREF(method);
  if (capsule == NULL) {
    raise_export_error(name);
  }
  return capsule;
}

/// Takes the managed tensor out of its capsule, so that this code and not the capsule calls the deleter.
static DLTensor *consume(native_tensor *tensor, PyObject *capsule, const char *name, bool writes) {
  if (PyCapsule_IsValid(capsule, versioned_name)) {
    DLManagedTensorVersioned *managed = PyCapsule_GetPointer(capsule, versioned_name);
    if (managed->version.major > 1) {
      PyErr_Format(PyExc_BufferError, "%s: expected DLPack version 1, got %u.%u", name, managed->version.major,
                   managed->version.minor);
      return NULL;
    }
    if (writes && (managed->flags & DLPACK_FLAG_BITMASK_READ_ONLY) != 0) {
      PyErr_Format(PyExc_BufferError, "%s: expected writable memory, got a read-only array", name);
      return NULL;
    }
    if (PyCapsule_SetName(capsule, "used_dltensor_versioned") != 0) {
      return NULL;
    }
    tensor->versioned = managed;
    return &managed->dl_tensor;
  }
  if (PyCapsule_IsValid(capsule, unversioned_name)) {
    DLManagedTensor *managed = PyCapsule_GetPointer(capsule, unversioned_name);
    if (PyCapsule_SetName(capsule, "used_dltensor") != 0) {
      return NULL;
    }
    tensor->unversioned = managed;
    return &managed->dl_tensor;
  }
  PyErr_Format(PyExc_BufferError, "%s: expected __dlpack__ to return an unused DLPack capsule, got %R", name, capsule);
  return NULL;
}

DLTensor *native_borrow(native_call *call, PyObject *object, const char *name, int access) {
  if (call->failed || (object == Py_None && (access & NATIVE_OPTIONAL) != 0)) {
    return NULL;
  }
  native_tensor tensor = {0};
  DLTensor *result = NULL;
  if (check_device(object, name)) {
    PyObject *capsule = export_capsule(call->state, object, name);
    if (capsule != NULL) {
      result = consume(&tensor, capsule, name, (access & NATIVE_WRITE) != 0);
      Py_DECREF(capsule);
    }
  }
  if (result == NULL) {
    call->failed = true;
  } else {
    call->tensors[call->tensor_count++] = tensor;
  }
  return result;
}

void native_release(native_tensor *tensor) {
  if (tensor->versioned != NULL && tensor->versioned->deleter != NULL) {
    tensor->versioned->deleter(tensor->versioned);
  } else if (tensor->unversioned != NULL && tensor->unversioned->deleter != NULL) {
    tensor->unversioned->deleter(tensor->unversioned);
  }
}
