// [n, h] bfloat16 x [v, h] bfloat16 -> [n, v] float32, sums in float32.
//
// Torch has this product on CUDA (mm with out_dtype) and not on a CPU, where its bfloat16 product
// rounds what it returns. This one goes through the same library's block product, tile by tile.

#include <ATen/Parallel.h>
#include <ATen/core/Tensor.h>
#include <ATen/cpu/vec/vec.h>
#include <ATen/native/CPUBlas.h>
#include <torch/library.h>

#include <algorithm>
#include <cstdint>
#include <vector>

namespace {

// Rows of the weight in a tile: its copy, 2 * 64 * h bytes, stays in a core's cache.
constexpr int64_t TILE = 64;

void product(const at::Tensor& hidden, const at::Tensor& weight, at::Tensor& out) {
  const int64_t n = hidden.size(0), h = hidden.size(1), v = weight.size(0);
  TORCH_CHECK(hidden.scalar_type() == at::kBFloat16 && weight.scalar_type() == at::kBFloat16 &&
                  out.scalar_type() == at::kFloat,
              "expected bfloat16 factors and a float32 result");
  TORCH_CHECK(hidden.is_contiguous() && weight.is_contiguous() && out.stride(1) == 1 &&
                  h % 2 == 0 && weight.size(1) == h && out.size(0) == n && out.size(1) == v,
              "expected contiguous [n, h] and [v, h] with an even h, and [n, v]");
  const auto* a = hidden.const_data_ptr<at::BFloat16>();
  const auto* w = weight.const_data_ptr<at::BFloat16>();
  auto* c = out.mutable_data_ptr<float>();
  const int64_t stride = out.stride(0), pairs = h / 2;
  at::parallel_for(0, (v + TILE - 1) / TILE, 1, [&](int64_t begin, int64_t end) {
    // The block product wants pairs of neighbours along h next to each other: [h / 2, tile, 2],
    // which is a transposition of pairs. As floats of 32 bits, because torch has that one.
    std::vector<float> packed(pairs * TILE);
    for (int64_t tile = begin; tile < end; ++tile) {
      const int64_t first = tile * TILE, rows = std::min(TILE, v - first);
      at::vec::transpose_mxn<float>(reinterpret_cast<const float*>(w + first * h), pairs,
                                    packed.data(), rows, rows, pairs);
      at::native::cpublas::brgemm(n, rows, h, h, rows, stride, /*add_C=*/false, a,
                                  reinterpret_cast<const at::BFloat16*>(packed.data()), c + first);
    }
    at::native::cpublas::brgemm_release();
  });
}

}  // namespace

TORCH_LIBRARY_FRAGMENT(dlogp_ray, m) {
  m.def("product(Tensor hidden, Tensor weight, Tensor(a!) out) -> ()");
  m.impl("product", c10::DispatchKey::CPU, TORCH_FN(product));
}
