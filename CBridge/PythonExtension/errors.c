// Copyright the lowrank_swift authors. SPDX-License-Identifier: Apache-2.0
#include "native.h"

static bool add_exception(PyObject *module, PyObject **slot, const char *qualified_name, const char *doc) {
  *slot = PyErr_NewExceptionWithDoc(qualified_name, doc, PyExc_RuntimeError, NULL);
  return *slot != NULL && PyModule_AddType(module, (PyTypeObject *)*slot) == 0;
}

bool native_add_exceptions(PyObject *module, native_state *state) {
  // The package's name, not the extension's: pickle finds the types where users import them.
  return add_exception(module, &state->linalg_error, "lowrank_swift.LinAlgError",
                       "A computation on finite input failed: no convergence, or a result that does not fit its dtype.") &&
         add_exception(module, &state->backend_unavailable_error, "lowrank_swift.BackendUnavailableError",
                       "The backend that a tensor needs is not available on this machine.") &&
         add_exception(module, &state->internal_error, "lowrank_swift.InternalError",
                       "A bug in lowrank_swift; please report it with the message.");
}

static PyObject *exception_type(const native_state *state, lr_status_t status) {
  switch (status) {
    case LR_STATUS_INVALID_SHAPE:
    case LR_STATUS_INVALID_ARGUMENT:
    case LR_STATUS_NON_FINITE:
      return PyExc_ValueError;
    case LR_STATUS_READ_ONLY:
    case LR_STATUS_OVERLAP:
    case LR_STATUS_UNSUPPORTED_DEVICE:
      return PyExc_BufferError;
    case LR_STATUS_UNSUPPORTED_DTYPE:
      return PyExc_TypeError;
    case LR_STATUS_BACKEND_UNAVAILABLE:
      return state->backend_unavailable_error;
    case LR_STATUS_NUMERICAL_FAILURE:
      return state->linalg_error;
    case LR_STATUS_OUT_OF_MEMORY:
      return PyExc_MemoryError;
    default:
      return state->internal_error;
  }
}

void native_raise_status(const native_state *state, lr_status_t status) {
  PyErr_SetString(exception_type(state, status), lr_last_error_message());
}

void native_raise_type_error(const char *name, const char *expected, PyObject *object) {
  PyObject *type_name = PyObject_GetAttrString((PyObject *)Py_TYPE(object), "__name__");
  if (type_name == NULL) {
    return;
  }
  PyErr_Format(PyExc_TypeError, "%s: expected %s, got %S", name, expected, type_name);
  Py_DECREF(type_name);
}
