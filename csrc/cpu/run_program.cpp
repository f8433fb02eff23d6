#include "run_program.h"

#include <algorithm>
#include <stdexcept>
#include <string>

#include "common/counters.h"
#include "common/parallel.h"
#include "cpu/program_steps.h"
#include "cpu/scratch.h"
#include "cpu/team.h"

namespace ik::cpu {
namespace {

constexpr int64_t kUnitElements = 16 << 10;  // of an elementwise step or a pool: enough to outweigh claiming it
constexpr int64_t kArenaLimit = int64_t{1} << 40;

// A step cut into units.
class Units {
 public:
  Units(const Step& step, DType dtype, int threads)
      : step_(step),
        kernels_(kernel_table(dtype)),
        program_kernels_(program_table(dtype)),
        tiles_(work_of(step), threads) {
    if (const auto* task = std::get_if<PoolTask>(&step.task)) {
      const Geometry& g = task->geometry;
      const int64_t chunk = std::min(g.C, kPoolChunk);
      cut(g.N * g.P * ((g.C + kPoolChunk - 1) / kPoolChunk), g.Q * chunk * g.R * g.S, threads);
    } else if (const auto* rows = std::get_if<ElementwiseTask>(&step.task)) {
      const Geometry& g = rows->geometry;
      cut(g.N * g.H, g.W * g.C, threads);
    } else {
      size_ = tiles_.size();
    }
  }

  int64_t size() const { return size_; }

  void run(int64_t i) const {
    if (const auto* conv = std::get_if<ConvTask>(&step_.task)) {
      conv_kernels(kernels_, conv->geometry).tile(*conv, tiles_[i]);
    } else if (const auto* separable = std::get_if<SeparableTask>(&step_.task)) {
      separable_kernels(kernels_, separable->geometry).tile(*separable, tiles_[i]);
    } else {
      const int64_t begin = rows_ * i / size_, end = rows_ * (i + 1) / size_;
      if (const auto* elementwise = std::get_if<ElementwiseTask>(&step_.task))
        program_kernels_.elementwise(*elementwise, begin, end);
      else if (step_.counter == program_kernels_.max_pool_counter)
        program_kernels_.max_pool(std::get<PoolTask>(step_.task), begin, end);
      else
        program_kernels_.average_pool(std::get<PoolTask>(step_.task), begin, end);
    }
  }

 private:
  Work work_of(const Step& step) const {
    if (const auto* conv = std::get_if<ConvTask>(&step.task))
      return conv_work(kernels_, conv_kernels(kernels_, conv->geometry), conv->geometry);
    if (const auto* separable = std::get_if<SeparableTask>(&step.task))
      return separable_work(kernels_, separable_kernels(kernels_, separable->geometry), separable->geometry);
    return {0, 1, 1, 0, 0, 0};
  }

  void cut(int64_t rows, int64_t elements_per_row, int threads) {
    rows_ = rows;
    const int64_t useful = rows * elements_per_row / kUnitElements;
    size_ = std::min(rows, std::max<int64_t>(threads, useful));
  }

  const Step& step_;
  const KernelTable& kernels_;
  const ProgramTable& program_kernels_;
  Tiling tiles_;
  int64_t rows_ = 0, size_ = 0;
};

}  // namespace

void run_program(const ProgramRun& run, double* seconds) {
  if (run.header.arena_bytes < 0 || run.header.arena_bytes > kArenaLimit)
    throw std::runtime_error("program: expected an arena of 0 to " + std::to_string(kArenaLimit) + " bytes, got " +
                             std::to_string(run.header.arena_bytes));
  void* const arena = scratch(Scratch::kArena, static_cast<size_t>(run.header.arena_bytes));
  const std::vector<Step> steps = decode_steps(run, arena);
  const int threads = std::max(1, num_threads());
  const DType dtype = static_cast<DType>(run.header.dtype);

  std::vector<Units> units;
  std::vector<Region> regions;
  std::vector<int64_t> first;  // step of every region
  units.reserve(steps.size());
  for (const Step& step : steps) {
    count_kernel(step.counter);
    units.emplace_back(step, dtype, threads);
    if (step.begins_region || seconds) {
      regions.emplace_back();
      first.push_back(static_cast<int64_t>(units.size()) - 1);
    }
    regions.back().units.push_back(units.back().size());
  }
  run_regions(
      regions, threads, [&](int64_t r, int64_t member, int64_t unit) { units[first[r] + member].run(unit); }, seconds);
}

}  // namespace ik::cpu
