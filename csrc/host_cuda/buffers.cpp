#include "host_cuda/buffers.h"

#include <link.h>
#include <pthread.h>

#include <algorithm>
#include <cstring>
#include <functional>

#include "host_cuda/machine.h"
#include "host_cuda/memory.h"

namespace ik::host_cuda {
namespace {

std::vector<TrackedBuffer> buffers;
TrackedBuffer* last_used = nullptr;

using Visitor = std::function<void(char*)>;
void visit_elements(const Buffer& buffer, size_t dimension, char* at, const Visitor& visit) {
  if (dimension == buffer.sizes.size()) {
    visit(at);
    return;
  }
  for (int64_t i = 0; i < buffer.sizes[dimension]; ++i) {
    visit_elements(buffer, dimension + 1, at + i * buffer.strides[dimension] * buffer.element_size, visit);
  }
}
void visit_elements(const Buffer& buffer, const Visitor& visit) {
  visit_elements(buffer, 0, static_cast<char*>(buffer.data), visit);
}

// From the first element to behind the last; 0 where there is none.
int64_t span_of(const Buffer& buffer) {
  int64_t last = 0;
  for (size_t i = 0; i < buffer.sizes.size(); ++i) {
    if (buffer.sizes[i] == 0) return 0;
    last += (buffer.sizes[i] - 1) * buffer.strides[i];
  }
  return (last + 1) * buffer.element_size;
}

TrackedBuffer* find(const char* pointer) {
  if (last_used && pointer >= last_used->begin && pointer < last_used->end) return last_used;
  for (TrackedBuffer& candidate : buffers) {
    if (pointer >= candidate.begin && pointer < candidate.end) return last_used = &candidate;
  }
  return nullptr;
}

struct Range {
  const char* begin;
  const char* end;
  bool holds(const char* pointer) const { return pointer >= begin && pointer < end; }
};

// Constants and tables of the loaded libraries.
std::vector<Range> library_ranges() {
  std::vector<Range> ranges;
  dl_iterate_phdr(
      [](dl_phdr_info* info, size_t, void* found) {
        for (int i = 0; i < info->dlpi_phnum; ++i) {
          const auto& segment = info->dlpi_phdr[i];
          const char* begin = reinterpret_cast<const char*>(info->dlpi_addr + segment.p_vaddr);
          if (segment.p_type != PT_LOAD) continue;
          static_cast<std::vector<Range>*>(found)->push_back({begin, begin + segment.p_memsz});
        }
        return 0;
      },
      &ranges);
  return ranges;
}

bool in_library(const char* pointer) {
  static thread_local std::vector<Range> ranges;
  const auto holds = [&] {
    return std::any_of(ranges.begin(), ranges.end(), [&](const Range& range) { return range.holds(pointer); });
  };
  if (holds()) return true;
  ranges = library_ranges();  // one may have been loaded since
  return holds();
}

// The stack of the launcher, where the kernel's arguments come from.
Range find_host_stack() {
  pthread_attr_t attributes;
  void* begin;
  size_t bytes;
  pthread_getattr_np(pthread_self(), &attributes);
  pthread_attr_getstack(&attributes, &begin, &bytes);
  pthread_attr_destroy(&attributes);
  return {static_cast<const char*>(begin), static_cast<const char*>(begin) + bytes};
}

bool is_not_device_memory(const char* pointer) {
  static thread_local const Range host_stack = find_host_stack();  // asking takes a system call per mapping
  return in_fiber_stack(pointer) || host_stack.holds(pointer) || in_library(pointer);
}

void report_out_of_bounds(const char* pointer, size_t bytes, bool writes, const Site& site) {
  const TrackedBuffer* nearest = nullptr;
  int64_t distance = 0;
  for (const TrackedBuffer& candidate : buffers) {
    const int64_t away = pointer < candidate.begin ? candidate.begin - pointer : pointer + bytes - candidate.end;
    if (nearest && away >= distance) continue;
    nearest = &candidate;
    distance = away;
  }
  const char* what = writes ? "write" : "read";
  if (!nearest) {
    report_fatal("global out of bounds", site, "%s of %zu bytes, and no buffer was announced", what, bytes);
    return;
  }
  report_fatal("global out of bounds", site, "%s of %zu bytes, %lld bytes %s '%s'", what, bytes,
               static_cast<long long>(distance), pointer < nearest->begin ? "before" : "past the end of",
               nearest->buffer.name.c_str());
}

enum class Order { kBefore, kUnordered };

// Is an earlier access ordered before what the running thread does now?
Order order_of(uint32_t sequence, Agent agent, Time time) {
  if (sequence == 0) return Order::kBefore;
  if (sequence < cluster->first_of_launch) {
    const bool launch_ordered = !cluster->launch.overlapped || knowledge().seen(kPreviousLaunch) > 0;
    return launch_ordered ? Order::kBefore : Order::kUnordered;
  }
  if (sequence != cluster->sequence) return Order::kUnordered;
  if (agent == running->agent) return Order::kBefore;
  return knowledge().seen(agent) >= time ? Order::kBefore : Order::kUnordered;
}

std::string culprit(uint32_t sequence, Agent agent) {
  if (sequence < cluster->first_of_launch) return "the previous launch, which nobody has waited for";
  if (sequence != cluster->sequence) return "another block";
  return agent_name(agent);
}

struct GlobalAccess {
  const TrackedBuffer& buffer;
  size_t offset;
  bool writes;
  const Site& site;
};

bool is_written_once(const Buffer& buffer) {
  return buffer.access == Access::kOutput || buffer.access == Access::kUpdated;
}

bool report_disorder(const GlobalCell& cell, const GlobalAccess& access) {
  const char* name = access.buffer.buffer.name.c_str();
  const char* what = access.writes ? "written" : "read";
  if (order_of(cell.write_sequence, cell.writer, cell.write_time) == Order::kUnordered) {
    report("global race", access.site, "'%s' at byte %zu is %s, but its write by %s is not ordered before", name,
           access.offset, what, culprit(cell.write_sequence, cell.writer).c_str());
    return true;
  }
  if (!access.writes) return false;
  if (cell.foreign) {
    report("write between rows", access.site, "'%s' at byte %zu is no element of the view", name, access.offset);
    return true;
  }
  if (order_of(cell.read_sequence, cell.reader, cell.read_time) == Order::kUnordered) {
    report("global race", access.site, "'%s' at byte %zu is overwritten, but its read by %s is not ordered before",
           name, access.offset, culprit(cell.read_sequence, cell.reader).c_str());
    return true;
  }
  if (is_written_once(access.buffer.buffer) && cell.write_sequence != 0) {
    report("output written twice", access.site, "'%s' at byte %zu", name, access.offset);
    return true;
  }
  return false;
}

void update(GlobalCell& cell, bool writes) {
  const Agent agent = running->agent;
  if (writes) {
    cell = {cluster->sequence, 0, knowledge().seen(agent), 0, agent, kNobody, cell.foreign};
    return;
  }
  cell.read_sequence = cluster->sequence;
  cell.read_time = knowledge().seen(agent);
  cell.reader = agent;
}

// What lies between the rows of a slice belongs to somebody else.
std::vector<GlobalCell> fresh_cells(const Buffer& buffer, const char* begin, size_t count, size_t cell_bytes) {
  std::vector<GlobalCell> cells(count);
  for (GlobalCell& cell : cells) cell.foreign = true;
  visit_elements(buffer, [&](const char* element) {
    const size_t first = static_cast<size_t>(element - begin) / cell_bytes;
    const size_t behind = static_cast<size_t>(element - begin + buffer.element_size - 1) / cell_bytes;
    for (size_t i = first; i <= behind; ++i) cells[i].foreign = false;
  });
  return cells;
}

}  // namespace

void track(const Buffer& buffer) {
  const int64_t bytes = span_of(buffer);
  if (bytes == 0) return;
  const char* begin = static_cast<const char*>(buffer.data);
  constexpr size_t kScratchCell = 2;
  constexpr size_t kLargestCell = 4;
  const size_t element_size = static_cast<size_t>(buffer.element_size);
  const size_t cell = buffer.access == Access::kScratch ? kScratchCell : std::min(element_size, kLargestCell);
  TrackedBuffer tracked = {buffer, begin, begin + bytes, cell, {}};
  if (buffer.access != Access::kInput) {
    if (buffer.access != Access::kUpdated) {
      visit_elements(buffer, [&](char* element) { memset(element, 0xff, element_size); });
    }
    if (checked) tracked.cells = fresh_cells(buffer, begin, (static_cast<size_t>(bytes) + cell - 1) / cell, cell);
  }
  buffers.push_back(std::move(tracked));
  last_used = nullptr;
}

void forget_buffers() {
  buffers.clear();
  last_used = nullptr;
}

void report_unwritten_outputs() {
  for (const TrackedBuffer& tracked : buffers) {
    if (!is_written_once(tracked.buffer) || tracked.cells.empty()) continue;
    size_t missing = 0;
    size_t all = 0;
    size_t first = 0;
    visit_elements(tracked.buffer, [&](const char* element) {
      const size_t offset = static_cast<size_t>(element - tracked.begin);
      const bool written = tracked.cells[offset / tracked.cell_bytes].write_sequence != 0;
      if (!written && missing++ == 0) first = offset;
      ++all;
    });
    if (!missing) continue;
    report("output not written", Site(), "'%s': %zu of %zu elements, the first at byte %zu",
           tracked.buffer.name.c_str(), missing, all, first);
  }
}

bool check_global(const void* pointer, size_t bytes, bool writes, const Site& site) {
  if (!checked || bytes == 0) return true;
  const char* begin = static_cast<const char*>(pointer);
  TrackedBuffer* tracked = find(begin);
  if (!tracked || bytes > static_cast<size_t>(tracked->end - begin)) {
    if (!tracked && is_not_device_memory(begin)) return true;
    report_out_of_bounds(begin, bytes, writes, site);
    return false;
  }
  if (tracked->buffer.access == Access::kInput) {
    if (writes) report_fatal("write to an input", site, "'%s'", tracked->buffer.name.c_str());
    return !writes;
  }
  const size_t offset = static_cast<size_t>(begin - tracked->begin);
  bool silent = false;
  for (size_t i = offset / tracked->cell_bytes; i <= (offset + bytes - 1) / tracked->cell_bytes; ++i) {
    GlobalCell& cell = tracked->cells[i];
    const bool holds = cell.write_sequence != 0 || tracked->buffer.access == Access::kUpdated;
    if (!writes && !holds && !cell.foreign && !silent) {
      report("uninitialised global read", site, "'%s' at byte %zu", tracked->buffer.name.c_str(),
             i * tracked->cell_bytes);
      silent = true;
    }
    silent = silent || report_disorder(cell, {*tracked, i * tracked->cell_bytes, writes, site});
    update(cell, writes);
  }
  return true;
}

void load_global(void* value, const void* address, int bytes, Where at) {
  if (checked) {
    check_alignment(address, static_cast<size_t>(bytes), "the load", at);
    check_access(address, static_cast<size_t>(bytes), false, at);
  }
  memcpy(value, address, static_cast<size_t>(bytes));
}

void store_global(void* address, const void* value, int bytes, Where at) {
  if (checked) {
    check_alignment(address, static_cast<size_t>(bytes), "the store", at);
    check_access(address, static_cast<size_t>(bytes), true, at);
  }
  memcpy(address, value, static_cast<size_t>(bytes));
}

}  // namespace ik::host_cuda
