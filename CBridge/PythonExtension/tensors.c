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

/// Refuses a device other than the CPU or CUDA's.
static bool check_device(DLDevice device, const char *name) {
  if (device.device_type == kDLCPU || device.device_type == kDLCUDAHost || device.device_type == kDLCUDA) {
    return true;
  }
  PyErr_Format(PyExc_BufferError, "%s: expected a tensor on the CPU or a CUDA device, got one on DLPack device (%d, %d)",
               name, (int)device.device_type, (int)device.device_id);
  return false;
}

/// Refuses what lives elsewhere before anything is exported, which for a device tensor could wait for its stream.
static bool ask_device(PyObject *object, DLDevice *device, const char *name) {
  *device = (DLDevice){kDLCPU, 0};
  PyObject *method = PyObject_GetAttrString(object, "__dlpack_device__");
  if (method == NULL) {
    if (!PyErr_ExceptionMatches(PyExc_AttributeError)) {
      return false;
    }
    PyErr_Clear();  // The library reads the device from the tensor itself.
    return true;
  }
  PyObject *answer = PyObject_CallNoArgs(method);
  Py_DECREF(method);
  int type = 0, id = 0;
  bool parsed = answer != NULL && PyArg_Parse(answer, "(ii)", &type, &id);
  Py_XDECREF(answer);
  if (!parsed) {
    raise_export_error(name);
    return false;
  }
  *device = (DLDevice){type, id};
  return check_device(*device, name);
}

// MARK: Streams

/// The stream that torch has its work done on now, for tensors of versions without the exchange API, and what
/// `leave_torch_device` takes: these versions export from their current device alone, which becomes `device`.
/// Returns 1 for a tensor of torch, 0 for another object, -1 with an exception.
static int enter_torch_device(const native_state *state, PyObject *object, int device, void **stream, PyObject **guard) {
  PyObject *torch = PyImport_GetModule(state->torch_name);
  PyObject *type = torch == NULL ? NULL : PyObject_GetAttrString(torch, "Tensor");
  int result = type == NULL ? (PyErr_Occurred() ? -1 : 0) : PyObject_IsInstance(object, type);
  if (result == 1) {
    PyObject *cuda = PyObject_GetAttrString(torch, "cuda");
    PyObject *current = cuda == NULL ? NULL : PyObject_CallMethod(cuda, "current_stream", "i", device);
    PyObject *address = current == NULL ? NULL : PyObject_GetAttrString(current, "cuda_stream");
    *stream = address == NULL ? NULL : PyLong_AsVoidPtr(address);
    PyObject *made = address == NULL ? NULL : PyObject_CallMethod(cuda, "device", "i", device);
    PyObject *entered = made == NULL ? NULL : PyObject_CallMethod(made, "__enter__", NULL);
    result = PyErr_Occurred() ? -1 : 1;
    *guard = result == 1 ? Py_NewRef(made) : NULL;
    Py_XDECREF(entered);
    Py_XDECREF(made);
    Py_XDECREF(address);
    Py_XDECREF(current);
    Py_XDECREF(cuda);
  }
  Py_XDECREF(type);
  Py_XDECREF(torch);
  return result;
}

/// Makes the device current again that was before; keeps an exception.
static void leave_torch_device(PyObject *guard) {
  if (guard == NULL) {
    return;
  }
  PyObject *type, *value, *traceback;
  PyErr_Fetch(&type, &value, &traceback);
  PyObject *left = PyObject_CallMethod(guard, "__exit__", "OOO", Py_None, Py_None, Py_None);
  if (left == NULL) {
    PyErr_WriteUnraisable(guard);
  }
  Py_XDECREF(left);
  Py_DECREF(guard);
  PyErr_Restore(type, value, traceback);
}

/// Has the call run on a stream, where its first tensor is. `waits` for what comes from frameworks that order their own
/// streams with the legacy default stream alone.
static void set_stream(native_call *call, int device, void *stream, bool waits) {
  if (call->cuda_device < 0) {
    call->cuda_device = device;
    // A device that is refused here is refused by the call, too.
    lr_cuda_set_stream(device, stream);
  }
  call->waits |= waits;
}

// MARK: Exports

// What `__dlpack__` takes as a consumer's stream.
enum { LEGACY_DEFAULT_STREAM = 1, NO_SYNCHRONIZATION = -1 };

/// The keywords of an export from a CUDA device, with the call's stream set (new reference), and what
/// `leave_torch_device` takes after it.
static PyObject *cuda_arguments(native_call *call, PyObject *object, int device, PyObject **guard) {
  void *stream = NULL;
  int is_torch = enter_torch_device(call->state, object, device, &stream, guard);
  if (is_torch < 0) {
    return NULL;
  }
  set_stream(call, device, stream, is_torch == 0);
  int number = is_torch != 0 ? NO_SYNCHRONIZATION : LEGACY_DEFAULT_STREAM;
  return Py_BuildValue("{s(ii)si}", "max_version", 1, 0, "stream", number);
}

/// Calls `__dlpack__` for a versioned capsule, or an unversioned one where the exporter is older (new reference).
static PyObject *export_capsule(native_call *call, PyObject *object, DLDevice device, const char *name) {
  PyObject *method = PyObject_GetAttrString(object, "__dlpack__");
  if (method == NULL) {
    if (PyErr_ExceptionMatches(PyExc_AttributeError)) {
      PyErr_Clear();
      native_raise_type_error(name, "a tensor with __dlpack__", object);
    }
    return NULL;
  }
  const native_state *state = call->state;
  PyObject *guard = NULL;
  PyObject *keywords = device.device_type == kDLCUDA ? cuda_arguments(call, object, device.device_id, &guard)
                                                     : Py_NewRef(state->dlpack_arguments);
  PyObject *capsule = keywords == NULL ? NULL : PyObject_Call(method, state->no_arguments, keywords);
  if (capsule == NULL && keywords != NULL && PyErr_ExceptionMatches(PyExc_TypeError)) {
    PyErr_Clear();
    PyObject *fewer = PyDict_Copy(keywords);
    if (fewer != NULL && PyDict_DelItemString(fewer, "max_version") == 0) {
      capsule = PyObject_Call(method, state->no_arguments, fewer);
    }
    Py_XDECREF(fewer);
  }
  leave_torch_device(guard);
  Py_XDECREF(keywords);
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

/// Has the call run on the framework's current stream of a CUDA device. Returns false with an exception set.
static bool follow_stream(native_call *call, const DLPackExchangeAPI *api, DLDevice device) {
  if (device.device_type != kDLCUDA) {
    return true;
  }
  void *stream = NULL;
  bool is_known = api->current_work_stream != NULL;
  if (is_known && api->current_work_stream(device.device_type, device.device_id, &stream) != 0) {
    return false;
  }
  // What a framework allocates is for its own current stream.
  if (is_known && call->cuda_device < 0 && api->managed_tensor_allocator != NULL) {
    call->framework = api;
  }
  set_stream(call, device.device_id, stream, !is_known);
  return true;
}

/// Borrows without a capsule and without calling Python. Returns NULL without an exception where that is not possible.
static DLTensor *exchange(native_call *call, PyObject *object, const char *name, int access, native_tensor *tensor) {
  const DLPackExchangeAPI *api = exchange_api(call->state, object);
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
      !check_device(result->device, name) || !follow_stream(call, api, result->device)) {
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
  DLTensor *result = exchange(call, object, name, access, tensor);
  DLDevice device;
  if (result == NULL && !PyErr_Occurred() && ask_device(object, &device, name)) {
    PyObject *capsule = export_capsule(call, object, device, name);
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
