#include "conformance.h"
#include "host_cuda/bind.h"

namespace ik::host_cuda {

PYBIND11_MODULE(IK_HOST_MODULE, module) {
  bind_runtime(module);
  // The output keeps what it holds (outputs and scratch would be poisoned): a TMA store may write a part of it.
  module.def("run", [](const std::string& name, const std::vector<int>& numbers, const py::object& given,
                       const py::object& result) {
    const conformance::Request request = {name, numbers, input(given, "input"),
                                          const_cast<void*>(input(result, "output")), context()};
    if (!conformance::run(request) && !conformance::run_sm90(request)) throw std::invalid_argument("no case " + name);
  });
}

}  // namespace ik::host_cuda
