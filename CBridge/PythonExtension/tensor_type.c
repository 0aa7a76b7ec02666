// Copyright the lowrank_swift authors. SPDX-License-Identifier: Apache-2.0
//
// lowrank_swift.Tensor: the arrays of callers who bring neither torch nor NumPy. It has memory of its own, is a view of
// another, or holds what an object exported, and exports itself through DLPack.
#include <stdlib.h>
#include <string.h>

#include "native.h"

// The longest vector register, and what JAX asks for to take memory over without a copy.
enum { MEMORY_ALIGNMENT = 64 };

// As many as the library takes.
enum { MAX_DIMENSIONS = 32 };

typedef struct {
  PyVarObject header;
  DLTensor tensor;  // its shape and strides are in `extents`
  bool read_only;
  void *memory;          // of its own, or NULL
  PyObject *owner;       // the tensor that this is a view of, or NULL
  native_tensor source;  // what was borrowed, or nothing
  int64_t extents[];     // sizes, then strides
} tensor_object;

static const struct {
  const char *name;
  DLDataType dtype;
} dtypes[] = {
    {"float32", {kDLFloat, 32, 1}}, {"float64", {kDLFloat, 64, 1}}, {"bfloat16", {kDLBfloat, 16, 1}},
    {"float16", {kDLFloat, 16, 1}}, {"int64", {kDLInt, 64, 1}},
};
enum { DTYPE_COUNT = sizeof dtypes / sizeof dtypes[0] };

const char *native_dtype_name(DLDataType dtype) {
  for (int i = 0; i < DTYPE_COUNT; i++) {
    if (memcmp(&dtypes[i].dtype, &dtype, sizeof dtype) == 0) {
      return dtypes[i].name;
    }
  }
  return NULL;
}

/// A new tensor without memory, with room for its shape and strides.
static tensor_object *new_object(PyTypeObject *type, int32_t ndim) {
  allocfunc allocate = (allocfunc)PyType_GetSlot(type, Py_tp_alloc);
  tensor_object *self = (tensor_object *)allocate(type, ndim);
  if (self != NULL) {
    self->tensor.ndim = ndim;
    self->tensor.shape = self->extents;
    self->tensor.strides = self->extents + ndim;
  }
  return self;
}

/// Sets the strides of row-major order. Returns the bytes of the elements, or -1 where they fit no address space.
static int64_t set_compact_strides(DLTensor *tensor) {
  int64_t bytes = tensor->dtype.bits / 8, stride = 1;
  bool overflows = false;
  for (int32_t i = tensor->ndim - 1; i >= 0; i--) {
    tensor->strides[i] = stride;
    overflows |= __builtin_mul_overflow(bytes, tensor->shape[i], &bytes);
    overflows |= __builtin_mul_overflow(stride, tensor->shape[i] > 0 ? tensor->shape[i] : 1, &stride);
  }
  return overflows || bytes > PTRDIFF_MAX - MEMORY_ALIGNMENT ? -1 : bytes;
}

static bool allocate_zeros(native_call *call, tensor_object *self) {
  int64_t bytes = set_compact_strides(&self->tensor);
  if (bytes >= 0 && self->tensor.device.device_type == kDLCUDA) {
    int32_t device = self->tensor.device.device_id;
    // The stream of all that is exported without a framework that says which is its own.
    call->status = lr_cuda_set_stream(device, NULL);
    if (call->status == LR_STATUS_OK) {
      NATIVE_RUN(call, lr_cuda_allocate(device, (uint64_t)bytes, &self->memory));
    }
    self->tensor.data = self->memory;
    return native_finish(call);
  }
  if (bytes >= 0) {
    size_t size = ((size_t)bytes / MEMORY_ALIGNMENT + 1) * MEMORY_ALIGNMENT;
    self->memory = aligned_alloc(MEMORY_ALIGNMENT, size);
    if (self->memory != NULL) {
      memset(self->memory, 0, size);
    }
  }
  self->tensor.data = self->memory;
  if (self->memory == NULL) {
    PyErr_NoMemory();
  }
  return self->memory != NULL;
}

static PyObject *tensor_new(PyTypeObject *type, PyObject *args, PyObject *keywords) {
  static char *names[] = {"shape", "dtype", "dl_device", NULL};
  PyObject *shape, *dtype_object = NULL;
  int device_type = kDLCPU, device_id = 0;
  if (!PyArg_ParseTupleAndKeywords(args, keywords, "O|O(ii):Tensor", names, &shape, &dtype_object, &device_type,
                                   &device_id)) {
    return NULL;
  }
  if (device_type != kDLCPU && device_type != kDLCUDA) {
    PyErr_Format(PyExc_ValueError, "dl_device: expected the CPU (1, 0) or a CUDA device (2, index), got (%d, %d)", device_type,
                 device_id);
    return NULL;
  }
  if (!PyTuple_Check(shape)) {
    native_raise_type_error("shape", "a tuple of int", shape);
    return NULL;
  }
  if (PyTuple_Size(shape) > MAX_DIMENSIONS) {
    PyErr_Format(PyExc_ValueError, "shape: expected at most %d sizes, got %zd", MAX_DIMENSIONS, PyTuple_Size(shape));
    return NULL;
  }
  native_call call = {.state = PyType_GetModuleState(type), .cuda_device = -1};
  const char *dtype = dtype_object == NULL ? "float32" : native_string(&call, dtype_object, "dtype");
  if (dtype == NULL) {
    return NULL;
  }
  int index = 0;
  while (index < DTYPE_COUNT && strcmp(dtypes[index].name, dtype) != 0) {
    index++;
  }
  if (index == DTYPE_COUNT) {
    PyErr_Format(PyExc_TypeError, "dtype: expected float32, float64, bfloat16, float16 or int64, got %s", dtype);
    return NULL;
  }
  tensor_object *self = new_object(type, (int32_t)PyTuple_Size(shape));
  if (self == NULL) {
    return NULL;
  }
  self->tensor.dtype = dtypes[index].dtype;
  self->tensor.device = (DLDevice){device_type, device_id};
  for (int32_t i = 0; i < self->tensor.ndim; i++) {
    self->extents[i] = native_int64(&call, PyTuple_GetItem(shape, i), "shape");
    if (self->extents[i] < 0 && !call.failed) {
      PyErr_Format(PyExc_ValueError, "shape: expected sizes of at least 0, got %R", shape);
    }
    if (PyErr_Occurred()) {
      Py_DECREF(self);
      return NULL;
    }
  }
  if (!allocate_zeros(&call, self)) {
    Py_CLEAR(self);
  }
  return (PyObject *)self;
}

static void tensor_dealloc(PyObject *object) {
  tensor_object *self = (tensor_object *)object;
  PyTypeObject *type = Py_TYPE(object);
  // A deleter may run Python code, which must not see an exception that is on its way.
  PyObject *error, *value, *traceback;
  PyErr_Fetch(&error, &value, &traceback);
  if (self->tensor.device.device_type == kDLCUDA) {
    lr_cuda_free(self->tensor.device.device_id, self->memory);
  } else {
    free(self->memory);
  }
  Py_XDECREF(self->owner);
  native_release(&self->source);
  PyErr_Restore(error, value, traceback);
  ((freefunc)PyType_GetSlot(type, Py_tp_free))(self);
  Py_DECREF(type);
}

/// Refuses dimensions that the library would refuse too, before they are copied.
static bool check_dimensions(const DLTensor *source, const char *name) {
  if (source->ndim < 0 || source->ndim > MAX_DIMENSIONS || (source->ndim > 0 && source->shape == NULL)) {
    PyErr_Format(PyExc_ValueError, "%s: expected a DLPack tensor of at most %d dimensions, got %d", name,
                 MAX_DIMENSIONS, source->ndim);
    return false;
  }
  for (int32_t i = 0; i < source->ndim; i++) {
    if (source->shape[i] < 0) {
      PyErr_Format(PyExc_ValueError, "%s: expected dimensions of at least 0, got %lld", name,
                   (long long)source->shape[i]);
      return false;
    }
  }
  return true;
}

PyObject *native_borrow_as_tensor(PyObject *module, PyObject *const *args, Py_ssize_t count) {
  native_call call;
  if (!native_begin(&call, module, "borrow", count, 2)) {
    return NULL;
  }
  const char *name = native_string(&call, args[1], "name");
  const DLTensor *source = native_borrow(&call, args[0], name, NATIVE_OWN);
  tensor_object *self = NULL;
  if (source != NULL && native_dtype_name(source->dtype) == NULL) {
    PyErr_Format(PyExc_TypeError,
                 "%s: expected float32, float64, bfloat16 or float16, got DLPack type code %d, %d bits, %d lanes", name,
                 source->dtype.code, source->dtype.bits, source->dtype.lanes);
  } else if (source != NULL && check_dimensions(source, name)) {
    self = new_object((PyTypeObject *)call.state->tensor_type, source->ndim);
  }
  call.failed = self == NULL;
  if (self != NULL) {
    self->source = call.tensors[--call.tensor_count];
    // A capsule without a version can't say that its memory is read-only, as JAX's is; NumPy takes it so as well.
    self->read_only = self->source.versioned == NULL ||
                      (self->source.versioned->flags & DLPACK_FLAG_BITMASK_READ_ONLY) != 0;
    self->tensor.data = source->data;
    self->tensor.byte_offset = source->byte_offset;
    self->tensor.device = source->device;
    self->tensor.dtype = source->dtype;
    size_t size = sizeof(int64_t) * (size_t)source->ndim;
    if (size > 0) {
      memcpy(self->tensor.shape, source->shape, size);
    }
    if (size > 0 && source->strides != NULL) {
      memcpy(self->tensor.strides, source->strides, size);
    } else {
      set_compact_strides(&self->tensor);
    }
  }
  native_finish(&call);
  return (PyObject *)self;
}

/// Finds the rows and their stride that all dimensions but the last make up, without a copy.
static bool flattened_rows(const DLTensor *tensor, int64_t *rows, int64_t *stride) {
  *rows = 1;
  *stride = 0;
  for (int32_t i = tensor->ndim - 2; i >= 0; i--) {
    int64_t size = tensor->shape[i], span;
    if (size != 1) {
      if (*rows == 1) {
        *stride = tensor->strides[i];
      } else if (*rows != 0 && size != 0 &&
                 (__builtin_mul_overflow(*stride, *rows, &span) || span != tensor->strides[i])) {
        return false;
      }
      if (__builtin_mul_overflow(*rows, size, rows)) {
        return false;
      }
    }
  }
  return true;
}

static PyObject *tensor_as_matrix(PyObject *object, PyObject *unused) {
  (void)unused;
  tensor_object *self = (tensor_object *)object;
  int64_t rows, stride;
  if (self->tensor.ndim == 0 || !flattened_rows(&self->tensor, &rows, &stride)) {
    Py_RETURN_NONE;
  }
  tensor_object *view = new_object(Py_TYPE(object), 2);
  if (view != NULL) {
    int32_t last = self->tensor.ndim - 1;
    view->tensor.data = self->tensor.data;
    view->tensor.byte_offset = self->tensor.byte_offset;
    view->tensor.device = self->tensor.device;
    view->tensor.dtype = self->tensor.dtype;
    view->extents[0] = rows;
    view->extents[1] = self->tensor.shape[last];
    view->extents[2] = stride;
    view->extents[3] = self->tensor.strides[last];
    view->read_only = self->read_only;
    view->owner = Py_NewRef(object);
  }
  return (PyObject *)view;
}

static void drop_reference(void *object) {
  // After the interpreter has ended there is nothing left to free.
  if (Py_IsInitialized()) {
    PyGILState_STATE lock = PyGILState_Ensure();
    Py_DECREF((PyObject *)object);
    PyGILState_Release(lock);
  }
}

static void delete_versioned(DLManagedTensorVersioned *managed) {
  drop_reference(managed->manager_ctx);
  free(managed);
}

static void delete_unversioned(DLManagedTensor *managed) {
  drop_reference(managed->manager_ctx);
  free(managed);
}

static void destroy_versioned_capsule(PyObject *capsule) {
  if (PyCapsule_IsValid(capsule, "dltensor_versioned")) {
    delete_versioned(PyCapsule_GetPointer(capsule, "dltensor_versioned"));
  }
}

static void destroy_unversioned_capsule(PyObject *capsule) {
  if (PyCapsule_IsValid(capsule, "dltensor")) {
    delete_unversioned(PyCapsule_GetPointer(capsule, "dltensor"));
  }
}

static PyObject *versioned_capsule(tensor_object *self) {
  DLManagedTensorVersioned *managed = malloc(sizeof *managed);
  if (managed == NULL) {
    return PyErr_NoMemory();
  }
  *managed = (DLManagedTensorVersioned){
      .version = {1, 0},
      .manager_ctx = Py_NewRef((PyObject *)self),
      .deleter = delete_versioned,
      .flags = self->read_only ? DLPACK_FLAG_BITMASK_READ_ONLY : 0,
      .dl_tensor = self->tensor,
  };
  PyObject *capsule = PyCapsule_New(managed, "dltensor_versioned", destroy_versioned_capsule);
  if (capsule == NULL) {
    delete_versioned(managed);
  }
  return capsule;
}

static PyObject *unversioned_capsule(tensor_object *self) {
  if (self->read_only) {
    PyErr_SetString(PyExc_BufferError, "a read-only tensor is exported to a consumer of DLPack 1.0 or newer only");
    return NULL;
  }
  DLManagedTensor *managed = malloc(sizeof *managed);
  if (managed == NULL) {
    return PyErr_NoMemory();
  }
  *managed = (DLManagedTensor){
      .dl_tensor = self->tensor, .manager_ctx = Py_NewRef((PyObject *)self), .deleter = delete_unversioned};
  PyObject *capsule = PyCapsule_New(managed, "dltensor", destroy_unversioned_capsule);
  if (capsule == NULL) {
    delete_unversioned(managed);
  }
  return capsule;
}

static PyObject *tensor_dlpack(PyObject *object, PyObject *args, PyObject *keywords) {
  static char *names[] = {"stream", "max_version", "dl_device", "copy", NULL};
  tensor_object *self = (tensor_object *)object;
  PyObject *stream = Py_None, *version = Py_None, *device = Py_None, *copy = Py_None;
  if (!PyArg_ParseTupleAndKeywords(args, keywords, "|$OOOO:__dlpack__", names, &stream, &version, &device, &copy)) {
    return NULL;
  }
  int type = self->tensor.device.device_type, id = self->tensor.device.device_id, major = 0, minor = 0;
  if ((device != Py_None && !PyArg_Parse(device, "(ii)", &type, &id)) ||
      (version != Py_None && !PyArg_Parse(version, "(ii)", &major, &minor))) {
    return NULL;
  }
  if (type != self->tensor.device.device_type || id != self->tensor.device.device_id || copy == Py_True) {
    PyErr_SetString(PyExc_BufferError, "a lowrank_swift.Tensor is exported as it is, not to another device or as a copy");
    return NULL;
  }
  return major >= 1 ? versioned_capsule(self) : unversioned_capsule(self);
}

static PyObject *tensor_dlpack_device(PyObject *object, PyObject *unused) {
  (void)unused;
  DLDevice device = ((tensor_object *)object)->tensor.device;
  return Py_BuildValue("(ii)", device.device_type, device.device_id);
}

static PyObject *tensor_shape(PyObject *object, void *closure) {
  (void)closure;
  const DLTensor *tensor = &((tensor_object *)object)->tensor;
  PyObject *shape = PyTuple_New(tensor->ndim);
  for (int32_t i = 0; shape != NULL && i < tensor->ndim; i++) {
    PyObject *size = PyLong_FromLongLong(tensor->shape[i]);
    if (size == NULL || PyTuple_SetItem(shape, i, size) != 0) {
      Py_CLEAR(shape);
    }
  }
  return shape;
}

static PyObject *tensor_dtype(PyObject *object, void *closure) {
  (void)closure;
  return PyUnicode_FromString(native_dtype_name(((tensor_object *)object)->tensor.dtype));
}

static PyObject *tensor_repr(PyObject *object) {
  PyObject *shape = tensor_shape(object, NULL);
  if (shape == NULL) {
    return NULL;
  }
  const char *dtype = native_dtype_name(((tensor_object *)object)->tensor.dtype);
  PyObject *text = PyUnicode_FromFormat("lowrank_swift.Tensor(shape=%R, dtype='%s')", shape, dtype);
  Py_DECREF(shape);
  return text;
}

static PyMethodDef tensor_methods[] = {
    {"__dlpack__", (PyCFunction)(void (*)(void))tensor_dlpack, METH_VARARGS | METH_KEYWORDS,
     "__dlpack__($self, /, *, stream=None, max_version=None, dl_device=None, copy=None)\n--\n\n"
     "Export the memory as a DLPack capsule."},
    {"__dlpack_device__", tensor_dlpack_device, METH_NOARGS,
     "__dlpack_device__($self, /)\n--\n\nReturn the DLPack device, such as ``(1, 0)`` for the CPU."},
    {"_as_matrix", tensor_as_matrix, METH_NOARGS,
     "_as_matrix($self, /)\n--\n\nA view with all dimensions but the last made one, or None where that needs a copy."},
    {NULL, NULL, 0, NULL},
};

static PyGetSetDef tensor_getset[] = {
    {"shape", tensor_shape, NULL, "Sizes of the dimensions, a tuple.", NULL},
    {"dtype", tensor_dtype, NULL, "Name of the element type, such as ``\"float32\"``.", NULL},
    {NULL, NULL, NULL, NULL, NULL},
};

static PyType_Slot tensor_slots[] = {
    {Py_tp_doc, "Tensor(shape, dtype='float32', dl_device=(1, 0))\n--\n\n"
                "A tensor for callers without a framework, read through DLPack.\n\n"
                "``numpy.from_dlpack``, ``torch.from_dlpack`` and their like share its memory, which starts as zeros.\n\n"
                "Args:\n    shape (tuple[int, ...]): Sizes of the dimensions.\n"
                "    dtype (str): ``\"float32\"``, ``\"float64\"``, ``\"bfloat16\"``, ``\"float16\"`` or ``\"int64\"``.\n"
                "    dl_device (tuple[int, int]): DLPack device: the CPU, or ``(2, index)`` for a CUDA device.\n\n"
                "Raises:\n    TypeError: if an argument is of another type.\n    ValueError: if a size is negative.\n"},
    {Py_tp_new, tensor_new},
    {Py_tp_dealloc, tensor_dealloc},
    {Py_tp_repr, tensor_repr},
    {Py_tp_methods, tensor_methods},
    {Py_tp_getset, tensor_getset},
    {0, NULL},
};

static PyType_Spec tensor_spec = {
    .name = "lowrank_swift.Tensor",
    .basicsize = sizeof(tensor_object),
    .itemsize = 2 * sizeof(int64_t),
    .flags = Py_TPFLAGS_DEFAULT,
    .slots = tensor_slots,
};

bool native_add_tensor_type(PyObject *module, native_state *state) {
  state->tensor_type = PyType_FromModuleAndSpec(module, &tensor_spec, NULL);
  return state->tensor_type != NULL && PyModule_AddType(module, (PyTypeObject *)state->tensor_type) == 0;
}
