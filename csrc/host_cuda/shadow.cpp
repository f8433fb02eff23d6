#include "host_cuda/shadow.h"

#include "host_cuda/machine.h"

namespace ik::host_cuda {
namespace {

bool ordered(Agent agent, Time time, const Accessor& accessor) {
  if (agent == accessor.agent && !accessor.asynchronous) return true;
  return accessor.knowledge->seen(agent) >= time;
}

}  // namespace

void Shadow::reset(size_t bytes) {
  cells_.assign((bytes + kCellBytes - 1) / kCellBytes, Cell{});
  more_readers_.clear();
}

void Shadow::grow(size_t bytes) {
  const size_t cells = (bytes + kCellBytes - 1) / kCellBytes;
  if (cells > cells_.size()) cells_.resize(cells);
}

void Shadow::give_to_mbarrier(size_t offset, size_t bytes) {
  for (size_t i = offset / kCellBytes; i <= (offset + bytes - 1) / kCellBytes; ++i) cells_[i] = {0, kMbarrier};
}

bool Shadow::report_mbarrier(const Cell& cell, size_t offset, bool writes, const Site& site) const {
  if (cell.writer != kMbarrier) return false;
  report("mbarrier", site, "shared offset %zu is %s, and belongs to a barrier", offset, writes ? "written" : "read");
  return true;
}

bool Shadow::report_unordered_write(const Cell& cell, size_t offset, const Accessor& accessor, bool writes,
                                    const Site& site) {
  if (cell.writer == kNobody) return false;
  const char* what = writes ? "written" : "read";
  if (!ordered(cell.writer, cell.write_time, accessor)) {
    report("shared race", site, "shared offset %zu is %s, but its last write, by %s, is not ordered before", offset,
           what, agent_name(cell.writer).c_str());
    return true;
  }
  const bool plain_write = is_thread(cell.writer);
  if (accessor.asynchronous && !writes && plain_write && accessor.knowledge->fenced(cell.writer) < cell.write_time) {
    report("missing proxy fence", site, "shared offset %zu is %s asynchronously, but was written by %s", offset, what,
           agent_name(cell.writer).c_str());
    return true;
  }
  return false;
}

void Shadow::remember_reader(Cell& cell, const Accessor& accessor) {
  const bool replaces =
      cell.reader == kNobody || cell.reader == accessor.agent || ordered(cell.reader, cell.read_time, accessor);
  if (replaces) {
    cell.reader = accessor.agent;
    cell.read_time = accessor.time;
    return;
  }
  if (!cell.more_readers) {
    more_readers_.emplace_back();
    cell.more_readers = static_cast<uint32_t>(more_readers_.size());
  }
  std::vector<Reader>& readers = more_readers_[cell.more_readers - 1];
  for (Reader& reader : readers) {
    if (reader.agent != accessor.agent) continue;
    reader.time = accessor.time;
    return;
  }
  readers.push_back({accessor.agent, accessor.time});
}

Agent Shadow::unordered_reader(const Cell& cell, const Accessor& accessor) const {
  if (cell.reader != kNobody && !ordered(cell.reader, cell.read_time, accessor)) return cell.reader;
  if (!cell.more_readers) return kNobody;
  for (const Reader& reader : more_readers_[cell.more_readers - 1]) {
    if (!ordered(reader.agent, reader.time, accessor)) return reader.agent;
  }
  return kNobody;
}

void Shadow::read(size_t offset, size_t bytes, const Accessor& accessor, const Site& site) {
  for (size_t i = offset / kCellBytes; i <= (offset + bytes - 1) / kCellBytes; ++i) {
    Cell& cell = cells_[i];
    if (cell.writer == kNobody) {
      report("uninitialised shared read", site, "nobody has written shared offset %zu", i * kCellBytes);
      return;
    }
    if (report_mbarrier(cell, i * kCellBytes, false, site)) return;
    if (report_unordered_write(cell, i * kCellBytes, accessor, false, site)) return;
    remember_reader(cell, accessor);
  }
}

void Shadow::write(size_t offset, size_t bytes, const Accessor& accessor, const Site& site) {
  bool silent = false;
  for (size_t i = offset / kCellBytes; i <= (offset + bytes - 1) / kCellBytes; ++i) {
    Cell& cell = cells_[i];
    if (report_mbarrier(cell, i * kCellBytes, true, site)) return;
    silent = silent || report_unordered_write(cell, i * kCellBytes, accessor, true, site);
    const Agent reader = unordered_reader(cell, accessor);
    if (reader != kNobody && !silent) {
      report("shared race", site, "shared offset %zu is overwritten, but its read by %s is not ordered before",
             i * kCellBytes, agent_name(reader).c_str());
      silent = true;
    }
    cell = Cell{accessor.time, accessor.agent, kNobody, 0, 0};
  }
}

bool Shadow::touched_beyond(const Knowledge& knowledge) const {
  for (const Cell& cell : cells_) {
    if (cell.writer == kMbarrier) continue;
    if (cell.writer != kNobody && knowledge.seen(cell.writer) < cell.write_time) return true;
    if (cell.reader != kNobody && knowledge.seen(cell.reader) < cell.read_time) return true;
    if (!cell.more_readers) continue;
    for (const Reader& reader : more_readers_[cell.more_readers - 1]) {
      if (knowledge.seen(reader.agent) < reader.time) return true;
    }
  }
  return false;
}

}  // namespace ik::host_cuda
