// What the checker found: kind, source line, detail.
#pragma once
#include <source_location>
#include <string>
#include <vector>

namespace ik::host_cuda {

// Where in the kernel's source: named by a primitive, or the return address of a sanitizer hook.
class Site {
 public:
  Site() = default;
  Site(std::source_location at) : file_(at.file_name()), line_(static_cast<int>(at.line())) {}
  Site(const char* file, int line) : file_(file), line_(line) {}
  static Site of_return_address(void* address) {
    Site site;
    site.address_ = address;
    return site;
  }

  bool operator==(const Site& other) const;
  std::string text() const;  // "conv2d_bn_act.cuh:120", empty where unknown

 private:
  const char* file_ = nullptr;
  int line_ = 0;
  void* address_ = nullptr;
};

// Reports the running thread, if there is one. The same kind at the same line is reported once.
[[gnu::format(printf, 3, 4)]] void report(const char* kind, const Site& site, const char* format, ...);
// Execution cannot go on: the launch is abandoned, and with it the rest of the session. Returns only outside kernels.
[[gnu::format(printf, 3, 4)]] void report_fatal(const char* kind, const Site& site, const char* format, ...);

bool fatal_reported();
std::vector<std::string> take_reports();

}  // namespace ik::host_cuda
