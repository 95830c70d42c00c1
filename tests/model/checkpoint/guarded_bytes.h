// Bytes that end where an inaccessible page begins: one read past the end kills the test, in every
// build.
#pragma once

#include <sys/mman.h>
#include <unistd.h>

#include <cstddef>
#include <cstring>
#include <span>

#include "kernels/core/check.h"

namespace espalier {

class GuardedBytes {
 public:
  explicit GuardedBytes(std::span<const std::byte> content) {
    const size_t page = static_cast<size_t>(sysconf(_SC_PAGESIZE));
    readable_bytes_ = (content.size() + page - 1) / page * page;
    mapped_bytes_ = readable_bytes_ + page;
    void* base =
        mmap(nullptr, mapped_bytes_, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
    ESPALIER_CHECK(base != MAP_FAILED);
    base_ = static_cast<std::byte*>(base);
    ESPALIER_CHECK(mprotect(base_ + readable_bytes_, page, PROT_NONE) == 0);
    bytes_ = {base_ + readable_bytes_ - content.size(), content.size()};
    if (!content.empty()) {
      std::memcpy(base_ + readable_bytes_ - content.size(), content.data(), content.size());
    }
  }
  GuardedBytes(const GuardedBytes&) = delete;
  GuardedBytes& operator=(const GuardedBytes&) = delete;
  ~GuardedBytes() { munmap(base_, mapped_bytes_); }

  std::span<const std::byte> bytes() const { return bytes_; }

 private:
  size_t readable_bytes_;
  size_t mapped_bytes_;
  std::byte* base_;
  std::span<const std::byte> bytes_;
};

}  // namespace espalier
