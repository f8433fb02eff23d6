#include "common/counters.h"

#include <map>
#include <mutex>
#include <sstream>

namespace ik {

namespace {

std::mutex& counters_mutex() {
  static std::mutex mutex;
  return mutex;
}

std::map<std::string, long>& counters() {
  static std::map<std::string, long> map;
  return map;
}

}  // namespace

void count_kernel(const char* name) {
  const std::lock_guard<std::mutex> lock(counters_mutex());
  ++counters()[name];
}

std::string counted_kernels() {
  const std::lock_guard<std::mutex> lock(counters_mutex());
  std::ostringstream out;
  for (const auto& [name, count] : counters()) out << name << "=" << count << "\n";
  return out.str();
}

void reset_counted_kernels() {
  const std::lock_guard<std::mutex> lock(counters_mutex());
  counters().clear();
}

}  // namespace ik
