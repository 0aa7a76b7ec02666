// Copyright the lowrank_swift authors. SPDX-License-Identifier: Apache-2.0
//
// Tensors in, by the Python side of DLPack 1.x: https://dmlc.github.io/dlpack/latest/python_spec.html. First by the C
// exchange API of the object's type (torch 2.10 has one), which takes a fraction of a microsecond, then by `__dlpack__`.
#include "native.h"

static const char *const versioned_name = "dltensor_versioned";
static const char *const unversioned_name = "dltensor";
static const char *const exchange_api_name = "dlpack_exchange_api";

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

/// Refuses a device other than the CPU.
static bool check_device(int type, int id, const char *name) {
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

/// Refuses what lives elsewhere before anything is exported, which for a device tensor could wait for its stream.
static bool ask_device(PyObject *object, const char *name) {
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
  return check_device(type, id, name);
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

/// Refuses a tensor whose layout is not known here, or that may not be written to where it has to be.
static bool check_managed(const DLManagedTensorVersioned *managed, const char *name, bool writes) {
  if (managed->version.major > 1) {
    PyErr_Format(PyExc_BufferError, "%s: expected DLPack version 1, got %u.%u", name, managed->version.major,
                 managed->version.minor);
    return false;
  }
  if (writes && (managed->flags & DLPACK_FLAG_BITMASK_READ_ONLY) != 0) {
    PyErr_Format(PyExc_BufferError, "%s: expected writable memory, got a read-only array", name);
    return false;
  }
  return true;
}

/// Takes the managed tensor out of its capsule, so that this code and not the capsule calls the deleter.
static DLTensor *consume(native_tensor *tensor, PyObject *capsule, const char *name, bool writes) {
  if (PyCapsule_IsValid(capsule, versioned_name)) {
    DLManagedTensorVersioned *managed = PyCapsule_GetPointer(capsule, versioned_name);
    if (!check_managed(managed, name, writes)) {
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

/// The table of functions of the object's type, or NULL where it offers none that is known here; never an exception.
static const DLPackExchangeAPI *exchange_api(native_state *state, PyObject *object) {
  PyObject *type = (PyObject *)Py_TYPE(object);
  if (type == state->plain_type) {
    return NULL;
  }
  PyObject *capsule = PyObject_GetAttr(type, state->exchange_name);
  if (capsule == NULL) {
    // Remembered, since raising and clearing the error takes as long as the rest of the call.
    PyErr_Clear();
    PyObject *previous = state->plain_type;
    state->plain_type = Py_NewRef(type);
    Py_XDECREF(previous);
    return NULL;
  }
  const DLPackExchangeAPIHeader *header = NULL;
  if (PyCapsule_IsValid(capsule, exchange_api_name)) {
    header = PyCapsule_GetPointer(capsule, exchange_api_name);
  }
  Py_DECREF(capsule);  // The table itself stays for the life of the process.
  while (header != NULL && header->version.major != 1) {
    header = header->prev_api;
  }
  return (const DLPackExchangeAPI *)header;
}

/// Borrows without a capsule and without calling Python. Returns NULL without an exception where that is not possible.
static DLTensor *exchange(native_state *state, PyObject *object, const char *name, int access, native_tensor *tensor) {
  const DLPackExchangeAPI *api = exchange_api(state, object);
  if (api == NULL) {
    return NULL;
  }
  DLTensor *result = NULL;
  // Only a managed tensor says whether it is read-only, and only that keeps its memory.
  if ((access & (NATIVE_WRITE | NATIVE_OWN)) == 0 && api->dltensor_from_py_object_no_sync != NULL) {
    if (api->dltensor_from_py_object_no_sync(object, &tensor->unowned) == 0) {
      result = &tensor->unowned;
    }
  } else if (api->managed_tensor_from_py_object_no_sync(object, &tensor->versioned) == 0) {
    result = &tensor->versioned->dl_tensor;
  }
  if (result == NULL) {
    // `__dlpack__` refuses the same objects in clearer words.
    tensor->versioned = NULL;
    if (PyErr_ExceptionMatches(PyExc_Exception) && !PyErr_ExceptionMatches(PyExc_MemoryError)) {
      PyErr_Clear();
    }
    return NULL;
  }
  if ((tensor->versioned != NULL && !check_managed(tensor->versioned, name, (access & NATIVE_WRITE) != 0)) ||
      !check_device(result->device.device_type, result->device.device_id, name)) {
    native_release(tensor);
    return NULL;
  }
  return result;
}

DLTensor *native_borrow(native_call *call, PyObject *object, const char *name, int access) {
  if (call->failed || (object == Py_None && (access & NATIVE_OPTIONAL) != 0)) {
    return NULL;
  }
  native_tensor *tensor = &call->tensors[call->tensor_count];
  DLTensor *result = exchange(call->state, object, name, access, tensor);
  if (result == NULL && !PyErr_Occurred() && ask_device(object, name)) {
    PyObject *capsule = export_capsule(call->state, object, name);
    if (capsule != NULL) {
      result = consume(tensor, capsule, name, (access & NATIVE_WRITE) != 0);
      Py_DECREF(capsule);
    }
  }
  if (result == NULL) {
    call->failed = true;
  } else {
    call->tensor_count++;
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
