#include <memory>

#include "host_cuda/machine.h"
#include "host_cuda/memory.h"
#include "host_cuda/tma_tile.h"

namespace ik::host_cuda {
namespace {

using SharedTile = std::shared_ptr<const TmaTile>;

bool check_rows(const TmaTile& tile, bool writes, const Site& site) {
  for (const TmaRow& row : tile.rows) {
    if (!check_global(row.global, static_cast<size_t>(row.valid_bytes), writes, site)) return false;
  }
  return true;
}

// `copy` writes `bytes` to shared memory and completes them on the barrier.
template <typename Copy>
void start_counted(Mbarrier& barrier, uint32_t write_to, int64_t bytes, const Site& site, Copy copy) {
  const Time time = barrier.now++;
  const Accessor accessor = {barrier.agent, time, &running->knowledge, true};
  if (!check_shared(write_to, static_cast<size_t>(bytes), true, accessor, site)) return;
  start_copy(site, [copy, bytes, time, &barrier] {
    copy();
    complete_bytes(barrier, bytes, time);
  });
}

void start_load(const SharedTile& tile, uint32_t barrier_address, const Site& site) {
  Mbarrier* barrier = find_mbarrier(barrier_address, true, site);
  if (!barrier || !check_rows(*tile, false, site)) return;
  start_counted(*barrier, tile->shared, tile->bytes(), site, [tile] { tile->load(); });
}

bool check_bulk(uint64_t address_bits, int bytes, const Site& site) {
  constexpr size_t kUnit = 16;
  if ((address_bits | static_cast<uint64_t>(bytes)) % kUnit == 0 && bytes > 0) return true;
  report_fatal("misaligned", site, "addresses and size of a bulk copy must be multiples of %zu", kUnit);
  return false;
}

}  // namespace

void tma_load(const TensorMap* map, uint32_t shared, uint32_t barrier, std::initializer_list<int> x, Where at) {
  start_load(std::make_shared<TmaTile>(box_tile(*map, shared, x, at)), barrier, at);
}

void tma_load_im2col(const TensorMap* map, uint32_t shared, uint32_t barrier, std::initializer_list<int> x,
                     std::initializer_list<int> offset, Where at) {
  start_load(std::make_shared<TmaTile>(im2col_tile(*map, shared, x, offset, at)), barrier, at);
}

void tma_multicast(const TensorMap* map, uint32_t shared, uint32_t barrier, uint32_t blocks,
                   std::initializer_list<int> x, Where at) {
  for (uint32_t rank = 0; blocks >> rank; ++rank) {
    if (!(blocks >> rank & 1)) continue;
    if (rank >= cluster->blocks.size()) {
      report_fatal("TMA", at, "multicast to block %u of %zu", rank, cluster->blocks.size());
      return;
    }
    tma_load(map, mapa(shared, rank), mapa(barrier, rank), x, at);
  }
}

void tma_store(const TensorMap* map, uint32_t shared, std::initializer_list<int> x, Where at) {
  const SharedTile tile = std::make_shared<TmaTile>(box_tile(*map, shared, x, at));
  Stores& stores = running->stores;
  if (checked) {
    if (stores.agent == kNobody) stores.agent = new_agent("a TMA store of " + agent_name(running->agent));
    const Accessor accessor = {stores.agent, stores.now, &running->knowledge, true};
    const size_t bytes = static_cast<size_t>(tile->bytes());
    if (!check_shared(shared, bytes, false, accessor, at) || !check_rows(*tile, true, at)) return;
  }
  if (!schedule.lazy) tile->store();
  stores.open.push_back([tile] { tile->store(); });
}

void tma_store_commit() { running->stores.commit(); }

void tma_store_wait(int pending) {
  Stores& stores = running->stores;
  while (static_cast<int>(stores.committed.size()) > pending) {
    const Stores::Group& group = stores.committed.front();
    if (schedule.lazy) {
      for (const auto& copy : group.copies) copy();
    }
    if (checked && stores.agent != kNobody) running->knowledge.learn(stores.agent, group.time);
    stores.committed.pop_front();
  }
}

void bulk_load(uint32_t shared, const void* global, int bytes, uint32_t barrier_address, Where at) {
  Mbarrier* barrier = find_mbarrier(barrier_address, true, at);
  const size_t size = static_cast<size_t>(bytes);
  if (!barrier || !check_bulk(shared | reinterpret_cast<uint64_t>(global), bytes, at)) return;
  if (!check_global(global, size, false, at)) return;
  start_counted(*barrier, shared, bytes, at, [=] { memcpy(shared_pointer(shared), global, size); });
}

void bulk_copy_cluster(uint32_t destination, uint32_t source, int bytes, uint32_t barrier_address, Where at) {
  Mbarrier* barrier = find_mbarrier(barrier_address, true, at);
  const size_t size = static_cast<size_t>(bytes);
  if (!barrier || !check_bulk(destination | source, bytes, at)) return;
  if (rank_of(barrier_address) != rank_of(destination)) {
    report("bulk copy", at, "the barrier is not in the destination's block");
  }
  if (rank_of(source) != running->block->rank) report("bulk copy", at, "the source is not in this block");
  const Accessor reader = {barrier->agent, barrier->now, &running->knowledge, true};
  if (!check_shared(source, size, false, reader, at)) return;
  start_counted(*barrier, destination, bytes, at,
                [=] { memcpy(shared_pointer(destination), shared_pointer(source), size); });
}

}  // namespace ik::host_cuda
