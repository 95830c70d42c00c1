#include "engine/kvcache/lru_heap.h"

#include <gtest/gtest.h>

#include <map>
#include <random>

namespace espalier {
namespace {

TEST(LruHeapTest, AgreesWithAnOrderedMapUnderRandomOperations) {
  for (uint64_t seed = 1; seed <= 20; ++seed) {
    SCOPED_TRACE(seed);
    std::mt19937_64 random(seed);
    LruHeap heap;
    std::map<uint64_t, int32_t> by_stamp;
    std::map<int32_t, uint64_t> by_id;
    for (int i = 0; i < 3000; ++i) {
      const int32_t id = static_cast<int32_t>(random() % 200);
      ASSERT_EQ(heap.Contains(id), by_id.contains(id));
      if (by_id.contains(id)) {
        heap.Erase(id);
        by_stamp.erase(by_id[id]);
        by_id.erase(id);
      } else {
        const uint64_t stamp = random();
        heap.Push(id, stamp);
        by_stamp[stamp] = id;
        by_id[id] = stamp;
      }
      ASSERT_EQ(heap.size(), static_cast<int>(by_id.size()));
      ASSERT_EQ(heap.empty(), by_id.empty());
      if (!by_stamp.empty()) {
        ASSERT_EQ(heap.Oldest(), by_stamp.begin()->second);
      }
      heap.CheckInvariants();
    }
  }
}

}  // namespace
}  // namespace espalier
