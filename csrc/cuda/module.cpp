// The CUDA extension: registration of what it implements, and PyTorch's precision flag.
#include <Python.h>

#include "common/counters.h"
#include "common/device.h"
#include "cuda/declines.h"
#include "cuda/precision.h"
#include "operators.h"

namespace {

// torch._C._get_fp32_precision_getter: libtorch's stable interface does not have the flag.
PyObject* precision_getter = nullptr;

bool is_tf32(PyObject* precision) {
  PyObject* bytes = precision ? PyUnicode_AsUTF8String(precision) : nullptr;
  const char* text = bytes ? PyBytes_AsString(bytes) : nullptr;
  const bool result = text && std::string(text) == "tf32";
  Py_XDECREF(bytes);
  return result;
}

}  // namespace

bool ik::cuda::allows_tf32() {
  const PyGILState_STATE state = PyGILState_Ensure();
  PyObject* precision = PyObject_CallFunction(precision_getter, "ss", "cuda", "conv");
  const bool result = is_tf32(precision);
  Py_XDECREF(precision);
  const bool failed = PyErr_Occurred() != nullptr;
  PyErr_Clear();
  PyGILState_Release(state);
  STD_TORCH_CHECK(!failed, "torch._C._get_fp32_precision_getter(\"cuda\", \"conv\") failed");
  return result;
}

STABLE_TORCH_LIBRARY_IMPL(inception_kernels, CUDA, m) {
  ik::register_conv2d_bn_act(m);
  ik::register_separable_conv2d(m);
  ik::register_asymmetric_pair(m);
  ik::register_batch_norm(m);
  ik::register_update_running_statistics(m);
}

STABLE_TORCH_LIBRARY_IMPL(inception_kernels, CompositeExplicitAutograd, m) {
  m.impl("_counted_cuda_kernels", TORCH_BOX(&ik::counted_kernels));
  m.impl("_reset_counted_cuda_kernels", TORCH_BOX(&ik::reset_counted_kernels));
  m.impl("_cuda_declines", TORCH_BOX(&ik::cuda::declines));
  m.impl("_cuda_allows_tf32", TORCH_BOX(&ik::cuda::allows_tf32));
}

PyMODINIT_FUNC PyInit__C_cuda() {
  static PyModuleDef module{PyModuleDef_HEAD_INIT, "_C_cuda", nullptr, -1, nullptr, nullptr, nullptr, nullptr, nullptr};
  PyObject* torch = PyImport_ImportModule("torch._C");
  if (!torch) return nullptr;
  precision_getter = PyObject_GetAttrString(torch, "_get_fp32_precision_getter");
  Py_DECREF(torch);
  return precision_getter ? PyModule_Create(&module) : nullptr;
}
