// Copyright the lowrank_swift authors. SPDX-License-Identifier: Apache-2.0
#include "PythonExtension.h"

#include "native.h"

native_state *native_get_state(PyObject *module) { return PyModule_GetState(module); }

static int module_exec(PyObject *module) {
  native_state *state = native_get_state(module);
  state->no_arguments = PyTuple_New(0);
  state->dlpack_arguments = Py_BuildValue("{s(ii)}", "max_version", 1, 0);
  state->exchange_name = PyUnicode_InternFromString("__dlpack_c_exchange_api__");
  state->torch_name = PyUnicode_InternFromString("torch");
  if (state->torch_name == NULL || state->no_arguments == NULL || state->dlpack_arguments == NULL || state->exchange_name == NULL ||
      !native_add_exceptions(module, state) || !native_add_tensor_type(module, state)) {
    return -1;
  }
  return 0;
}

static int module_traverse(PyObject *module, visitproc visit, void *arg) {
  native_state *state = native_get_state(module);
  Py_VISIT(state->linalg_error);
  Py_VISIT(state->backend_unavailable_error);
  Py_VISIT(state->internal_error);
  Py_VISIT(state->no_arguments);
  Py_VISIT(state->dlpack_arguments);
  Py_VISIT(state->exchange_name);
  Py_VISIT(state->torch_name);
  Py_VISIT(state->plain_type);
  Py_VISIT(state->tensor_type);
  return 0;
}

static int module_clear(PyObject *module) {
  native_state *state = native_get_state(module);
  Py_CLEAR(state->linalg_error);
  Py_CLEAR(state->backend_unavailable_error);
  Py_CLEAR(state->internal_error);
  Py_CLEAR(state->no_arguments);
  Py_CLEAR(state->dlpack_arguments);
  Py_CLEAR(state->exchange_name);
  Py_CLEAR(state->torch_name);
  Py_CLEAR(state->plain_type);
  Py_CLEAR(state->tensor_type);
  return 0;
}

static void module_free(void *module) { module_clear(module); }

static PyModuleDef_Slot module_slots[] = {{Py_mod_exec, module_exec}, {0, NULL}};

static PyModuleDef module_definition = {
    .m_base = PyModuleDef_HEAD_INIT,
    .m_name = "lowrank_swift._native",
    .m_doc = "The C ABI of lowrank_swift over DLPack tensors. Private: use the functions of lowrank_swift.",
    .m_size = sizeof(native_state),
    .m_methods = native_methods,
    .m_slots = module_slots,
    .m_traverse = module_traverse,
    .m_clear = module_clear,
    .m_free = module_free,
};

PyMODINIT_FUNC PyInit__native(void) { return PyModuleDef_Init(&module_definition); }
