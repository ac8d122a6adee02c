// [n, h] bfloat16 x [v, h] bfloat16 -> [n, v], sums in float32: an lm head's logits in float32, or
// a linear layer's result in bfloat16.
//
// Torch has the first on CUDA (mm with out_dtype) and not on a CPU, where its bfloat16 product
// rounds what it returns. The second it has; this one is faster.

#include <ATen/Parallel.h>
#include <ATen/core/Tensor.h>
#include <ATen/ops/empty.h>
#include <torch/library.h>

#include "block_product.h"

namespace {

using namespace dlogp_ray;

template <typename Out>
void product_into(const at::Tensor& hidden, const at::Tensor& weight, Out* out, int64_t stride) {
  const int64_t n = hidden.size(0), h = hidden.size(1), v = weight.size(0), pairs = h / 2;
  const auto* a = hidden.const_data_ptr<BFloat16>();
  const auto* w = weight.const_data_ptr<BFloat16>();
  at::parallel_for(0, (v + COLUMNS - 1) / COLUMNS, 1, [&](int64_t begin, int64_t end) {
    const Packed packed = allocate_packed(1, pairs);
    for (int64_t block = begin; block < end; ++block) {
      const int64_t first = block * COLUMNS, columns = std::min(COLUMNS, v - first);
      const int64_t after = block + 1 < end ? std::min(COLUMNS, v - first - COLUMNS) : 0;
      pack_rows(w + first * h, h, columns, pairs, packed.get());
      multiply(n, columns, pairs, a, h, packed.get(), out + first, stride,
               w + (first + columns) * h, after * h * 2);
    }
  });
}

void check(const at::Tensor& hidden, const at::Tensor& weight) {
  TORCH_CHECK(hidden.scalar_type() == at::kBFloat16 && weight.scalar_type() == at::kBFloat16,
              "expected bfloat16 factors");
  TORCH_CHECK(hidden.dim() == 2 && hidden.is_contiguous() && weight.is_contiguous() &&
                  hidden.size(1) % 2 == 0 && weight.size(1) == hidden.size(1),
              "expected contiguous [n, h] and [v, h] with an even h");
}

void product(const at::Tensor& hidden, const at::Tensor& weight, at::Tensor& out) {
  check(hidden, weight);
  TORCH_CHECK(out.scalar_type() == at::kFloat && out.stride(1) == 1 &&
                  out.size(0) == hidden.size(0) && out.size(1) == weight.size(0),
              "expected a float32 result [n, v]");
  product_into(hidden, weight, out.mutable_data_ptr<float>(), out.stride(0));
}

at::Tensor linear(const at::Tensor& hidden, const at::Tensor& weight) {
  // A compiler may hand over another layout than the one that the layer asked for.
  const at::Tensor rows = hidden.contiguous();
  check(rows, weight);
  at::Tensor out = at::empty({rows.size(0), weight.size(0)}, rows.options());
  product_into(rows, weight, out.mutable_data_ptr<BFloat16>(), out.stride(0));
  return out;
}

}  // namespace

TORCH_LIBRARY_FRAGMENT(dlogp_ray, m) {
  m.def("product(Tensor hidden, Tensor weight, Tensor(a!) out) -> ()");
  m.impl("product", c10::DispatchKey::CPU, TORCH_FN(product));
  m.def("linear(Tensor hidden, Tensor weight) -> Tensor");
  m.impl("linear", c10::DispatchKey::CPU, TORCH_FN(linear));
}
