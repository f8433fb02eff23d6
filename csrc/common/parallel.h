// Torch's own thread pool behind a header without torch in it, so that kernels can also be built and tested alone.
#pragma once
#include <cstdint>
#include <functional>

namespace ik {

int num_threads();

// Calls body(begin_i, end_i) on disjoint ranges that cover [begin, end), each at least `grain` long.
void parallel_for(int64_t begin, int64_t end, int64_t grain, const std::function<void(int64_t, int64_t)>& body);

}  // namespace ik
