#include "engine/kvcache/page_pool.h"

#include <algorithm>

#include "kernels/core/check.h"

namespace espalier {

PagePool::PagePool(int num_pages)
    : owners_(num_pages, 0), last_read_(num_pages, 0), retiring_(num_pages, -1) {
  ESPALIER_CHECK(num_pages > 0);
  free_.reserve(num_pages);
  for (int32_t page = num_pages - 1; page >= 0; --page) free_.push_back(page);
}

std::optional<int32_t> PagePool::Acquire() {
  if (free_.empty()) return std::nullopt;
  const int32_t page = free_.back();
  free_.pop_back();
  ESPALIER_CHECK(owners_[page] == 0);
  owners_[page] = 1;
  last_read_[page] = 0;
  return page;
}

void PagePool::ListNext(int count, std::vector<int32_t>* pages) const {
  pages->insert(pages->end(), free_.rbegin(), free_.rbegin() + std::min(count, num_free()));
}

void PagePool::AddOwner(int32_t page) {
  ESPALIER_CHECK(owners_[page] > 0);
  ++owners_[page];
}

bool PagePool::Release(int32_t page, Fence last_read) {
  ESPALIER_CHECK(owners_[page] > 0);
  ESPALIER_CHECK(last_read <= submitted_end_);
  last_read_[page] = std::max(last_read_[page], last_read);
  if (--owners_[page] > 0) return false;
  if (Passed(last_read_[page])) {
    free_.push_back(page);
  } else {
    retiring_[(retiring_head_ + num_retiring_) % num_pages()] = page;
    ++num_retiring_;
  }
  return true;
}

void PagePool::StepSubmitted(uint64_t step) {
  ESPALIER_CHECK(step >= submitted_end_);
  submitted_end_ = step + 1;
}

void PagePool::StepDone(uint64_t step) {
  ESPALIER_CHECK(step >= done_end_);
  ESPALIER_CHECK(step < submitted_end_);
  done_end_ = step + 1;
  while (num_retiring_ > 0 && Passed(last_read_[retiring_[retiring_head_]])) {
    free_.push_back(retiring_[retiring_head_]);
    retiring_head_ = (retiring_head_ + 1) % num_pages();
    --num_retiring_;
  }
}

void PagePool::CheckInvariants() const {
  std::vector<char> unowned(num_pages(), 0);
  for (int32_t page : free_) {
    ESPALIER_CHECK(page >= 0 && page < num_pages());
    ESPALIER_CHECK(!unowned[page]);
    ESPALIER_CHECK(Passed(last_read_[page]));
    unowned[page] = 1;
  }
  for (int i = 0; i < num_retiring_; ++i) {
    const int32_t page = retiring_[(retiring_head_ + i) % num_pages()];
    ESPALIER_CHECK(!unowned[page]);
    ESPALIER_CHECK(!Passed(submitted_end_));  // else StepDone would have freed it
    unowned[page] = 1;
  }
  for (int page = 0; page < num_pages(); ++page) {
    ESPALIER_CHECK(owners_[page] >= 0);
    ESPALIER_CHECK((owners_[page] == 0) == (unowned[page] != 0));
  }
}

}  // namespace espalier
