// The race checker's memory of shared memory: who last wrote and who has read each pair of bytes.
#pragma once
#include <cstdint>
#include <vector>

#include "host_cuda/clocks.h"
#include "host_cuda/report.h"

namespace ik::host_cuda {

class Shadow {
 public:
  void reset(size_t bytes);
  void grow(size_t bytes);

  // In bounds; reports what is wrong, once per access.
  void read(size_t offset, size_t bytes, const Accessor& accessor, const Site& site);
  void write(size_t offset, size_t bytes, const Accessor& accessor, const Site& site);
  // From now on these bytes are an mbarrier's: any access is reported.
  void give_to_mbarrier(size_t offset, size_t bytes);

  // True if some access is not among what `knowledge` has seen.
  bool touched_beyond(const Knowledge& knowledge) const;

 private:
  static constexpr size_t kCellBytes = 2;
  static constexpr Agent kMbarrier = kNobody - 1;  // as the writer of a cell
  struct Reader {
    Agent agent;
    Time time;
  };
  struct Cell {
    Time write_time = 0;
    Agent writer = kNobody;
    Agent reader = kNobody;
    Time read_time = 0;
    uint32_t more_readers = 0;  // index + 1
  };

  bool report_mbarrier(const Cell& cell, size_t offset, bool writes, const Site& site) const;
  bool report_unordered_write(const Cell& cell, size_t offset, const Accessor& accessor, bool writes, const Site& site);
  void remember_reader(Cell& cell, const Accessor& accessor);
  Agent unordered_reader(const Cell& cell, const Accessor& accessor) const;

  std::vector<Cell> cells_;
  std::vector<std::vector<Reader>> more_readers_;
};

}  // namespace ik::host_cuda
