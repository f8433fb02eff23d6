#include "common/counters.h"

#include <map>
#include <mutex>
#include <sstream>
#include <string_view>

namespace ik {

namespace {

std::mutex& counters_mutex() {
  static std::mutex mutex;
  return mutex;
}

using Counters = std::map<std::string, long, std::less<>>;  // less<>: found by a name that is no std::string

Counters& counters() {
  static Counters map;
  return map;
}

}  // namespace

void count_kernel(const char* name) {
  const std::lock_guard<std::mutex> lock(counters_mutex());
  const auto found = counters().find(std::string_view(name));
  if (found == counters().end())
    counters().emplace(name, 1);
  else
    ++found->second;
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
