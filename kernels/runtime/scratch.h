// A buffer that grows to the largest size asked for and is then reused. Contents do not survive
// the next Get. One thread at a time.
#pragma once

#include <cstddef>
#include <memory>
#include <new>
#include <type_traits>

namespace espalier {

class Scratch {
 public:
  // Uninitialised memory for `count` elements, aligned to a cache line.
  template <typename T>
  T* Get(size_t count) {
    static_assert(std::is_trivially_copyable_v<T> && alignof(T) <= kAlignment);
    Reserve(count * sizeof(T));
    return reinterpret_cast<T*>(data_.get());
  }

  size_t capacity() const { return capacity_; }

 private:
  static constexpr size_t kAlignment = 64;
  struct Free {
    void operator()(std::byte* data) const {
      ::operator delete[](data, std::align_val_t{kAlignment});
    }
  };

  void Reserve(size_t bytes) {
    if (bytes <= capacity_) return;
    data_.reset();  // first, so that old and new are never held together
    data_.reset(new (std::align_val_t{kAlignment}) std::byte[bytes]);
    capacity_ = bytes;
  }

  std::unique_ptr<std::byte[], Free> data_;
  size_t capacity_ = 0;
};

}  // namespace espalier
