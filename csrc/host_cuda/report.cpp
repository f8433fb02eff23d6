#include "host_cuda/report.h"

#include <dlfcn.h>

#include <cstdarg>
#include <cstdint>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <map>
#include <set>

#include "host_cuda/machine.h"

namespace ik::host_cuda {
namespace {

constexpr size_t kMostReports = 20;

std::vector<std::string> reports;
std::set<std::string> reported;
bool fatal = false;

std::string base_name(const std::string& path) {
  const size_t slash = path.rfind('/');
  return slash == std::string::npos ? path : path.substr(slash + 1);
}

// "file:line" of an instruction, through the debugger's tables.
std::string look_up(void* address) {
  static std::map<void*, std::string> known;
  const auto found = known.find(address);
  if (found != known.end()) return found->second;
  std::string text;
  Dl_info library;
  if (dladdr(address, &library)) {
    const uintptr_t offset = reinterpret_cast<uintptr_t>(address) - 1 - reinterpret_cast<uintptr_t>(library.dli_fbase);
    char command[1024];
    snprintf(command, sizeof command, "addr2line -e '%s' 0x%zx", library.dli_fname, static_cast<size_t>(offset));
    if (FILE* pipe = popen(command, "r")) {
      char line[1024];
      if (fgets(line, sizeof line, pipe)) text = line;
      pclose(pipe);
    }
    text = text.substr(0, text.find_first_of(" \n"));
  }
  return known[address] = base_name(text);
}

std::string running_thread() {
  if (!running) return "";
  const uint3 block = running->block->index;
  const uint3 thread = running->thread;
  char text[200];
  snprintf(text, sizeof text, " [%s block %u,%u,%u thread %u,%u,%u]", cluster->launch.name, block.x, block.y, block.z,
           thread.x, thread.y, thread.z);
  return text;
}

void add(const char* kind, const Site& site, const char* format, va_list arguments) {
  char detail[600];
  vsnprintf(detail, sizeof detail, format, arguments);
  const std::string where = site.text();
  const std::string key = std::string(kind) + "|" + (where.empty() ? detail : where);
  if (reports.size() >= kMostReports || !reported.insert(key).second) return;
  reports.push_back(std::string(kind) + (where.empty() ? "" : " at " + where) + ": " + detail + running_thread());
}

}  // namespace

bool Site::operator==(const Site& other) const {
  const bool same_file = file_ == other.file_ || (file_ && other.file_ && strcmp(file_, other.file_) == 0);
  return same_file && line_ == other.line_ && address_ == other.address_;
}

std::string Site::text() const {
  if (address_) return look_up(address_);
  return file_ ? base_name(file_) + ":" + std::to_string(line_) : "";
}

void report(const char* kind, const Site& site, const char* format, ...) {
  va_list arguments;
  va_start(arguments, format);
  add(kind, site, format, arguments);
  va_end(arguments);
}

void report_fatal(const char* kind, const Site& site, const char* format, ...) {
  va_list arguments;
  va_start(arguments, format);
  add(kind, site, format, arguments);
  va_end(arguments);
  fatal = true;
  if (running) abandon_cluster();
}

bool fatal_reported() { return fatal; }

std::vector<std::string> take_reports() {
  fatal = false;
  reported.clear();
  return std::exchange(reports, {});
}

}  // namespace ik::host_cuda
