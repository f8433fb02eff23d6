// Regions of independent units, run one after the other by torch's threads that are woken only once. A fork and join
// per region costs more than many a layer of a network takes.
#pragma once
#include <cstdint>
#include <functional>
#include <vector>

namespace ik::cpu {

// units[m]: of the region's member m. Members and their units may run in any order and at the same time.
struct Region {
  std::vector<int64_t> units;
};

// Calls body(region, member, unit) for every unit; a region begins when all before it are complete. Each thread starts
// with the same share of every member, so that what it wrote is in its cache, then helps the others. Threads that
// arrive late, or never, only make it slower. seconds: [regions] or null.
void run_regions(const std::vector<Region>& regions, int threads,
                 const std::function<void(int64_t, int64_t, int64_t)>& body, double* seconds);

}  // namespace ik::cpu
