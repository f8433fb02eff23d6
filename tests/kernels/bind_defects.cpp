#include "defects.h"
#include "host_cuda/bind.h"

namespace ik::host_cuda {
namespace {

std::vector<cuda::DefectCase> all_cases() {
  std::vector<cuda::DefectCase> all;
  for (const auto& group :
       {cuda::memory_defects(), cuda::barrier_defects(), cuda::copy_defects(), cuda::tensor_defects()}) {
    all.insert(all.end(), group.begin(), group.end());
  }
  return all;
}

std::vector<std::string> names() {
  std::vector<std::string> all;
  for (const cuda::DefectCase& one : all_cases()) all.push_back(one.name);
  return all;
}

void run(const std::string& name, bool defect, const py::object& x, const py::object& y, const py::object& rows,
         const py::object& scratch_memory, const py::object& updated_memory) {
  const cuda::Arguments arguments = {static_cast<const float*>(input(x, "x")), static_cast<float*>(output(y, "y")),
                                     static_cast<float*>(scratch(rows, "rows")),
                                     static_cast<float*>(scratch(scratch_memory, "scratch")),
                                     static_cast<float*>(updated(updated_memory, "updated"))};
  for (const cuda::DefectCase& one : all_cases()) {
    if (name == one.name) one.launch(defect, arguments, context());
  }
}

}  // namespace

PYBIND11_MODULE(IK_HOST_MODULE, module) {
  bind_runtime(module);
  module.def("names", &names);
  module.def("run", &run);
}

}  // namespace ik::host_cuda
