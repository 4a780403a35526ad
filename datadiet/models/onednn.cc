// The three operations of a convolution by oneDNN 3, as one foreign function of XLA. float32, activations [B, H, W, C],
// kernels [H, W, I, O], which are put into the layout that oneDNN prefers and back. What it compiles is kept by shape.

#include <map>
#include <mutex>

#include "oneapi/dnnl/dnnl.hpp"
#include "xla/ffi/api/ffi.h"

namespace ffi = xla::ffi;
using namespace dnnl;
using tag = memory::format_tag;
using Array = ffi::Buffer<ffi::F32>;
using Numbers = ffi::Span<const int64_t>;
using Key = std::vector<memory::dims>;  // sizes of a, kernel and g as oneDNN orders them; strides, lows, highs; kind

enum Kind { kForward, kInputGradient, kKernelGradient };  // as in onednn.py

struct Plan {
  memory::desc a, kernel, g, liked, scratch, turn_scratch;  // liked: the kernel as `work` has it
  primitive work, turn;
};

const engine& cpu() {
  static const auto* made = new engine(engine::kind::cpu, 0);  // never destroyed: threads outlive main
  return *made;
}

memory::desc Described(const memory::dims& sizes, tag layout) { return {sizes, memory::data_type::f32, layout}; }

// Memory that a thread keeps from call to call: new memory is cleared by the system, page by page.
memory Room(int which, const memory::desc& wanted) {
  thread_local memory rooms[3];
  auto size = static_cast<memory::dim>(wanted.get_size());
  if (!rooms[which] || rooms[which].get_desc().get_size() < wanted.get_size())
    rooms[which] = memory({{size}, memory::data_type::u8, tag::a}, cpu());
  return {wanted, cpu(), rooms[which].get_data_handle()};
}

Plan Planned(Kind kind, const Key& key) {
  Plan plan{Described(key[0], tag::nhwc), Described(key[1], tag::hwio), Described(key[2], tag::nhwc)};
  auto any = Described(key[1], tag::any);
  auto direct = algorithm::convolution_direct;
  primitive_attr own;
  own.set_scratchpad_mode(scratchpad_mode::user);  // the library's is tied to the thread that compiles
  auto keep = [&](const primitive& work, const memory::desc& liked, const memory::desc& scratch) {
    plan.work = work, plan.liked = liked, plan.scratch = scratch;
  };
  convolution_forward::primitive_desc forward(cpu(), prop_kind::forward_training, direct, plan.a, any, plan.g, key[3],
                                              key[4], key[5], own);
  if (kind == kForward) {
    keep(convolution_forward(forward), forward.weights_desc(), forward.scratchpad_desc());
  } else if (kind == kInputGradient) {
    convolution_backward_data::primitive_desc made(cpu(), direct, plan.a, any, plan.g, key[3], key[4], key[5], forward,
                                                   own);
    keep(convolution_backward_data(made), made.weights_desc(), made.scratchpad_desc());
  } else {
    convolution_backward_weights::primitive_desc made(cpu(), direct, plan.a, any, plan.g, key[3], key[4], key[5],
                                                      forward, own);
    keep(convolution_backward_weights(made), made.diff_weights_desc(), made.scratchpad_desc());
  }
  auto [from, to] = kind == kKernelGradient ? std::pair(plan.liked, plan.kernel) : std::pair(plan.kernel, plan.liked);
  reorder::primitive_desc turn(cpu(), from, cpu(), to, own);
  plan.turn = reorder(turn), plan.turn_scratch = turn.scratchpad_desc();
  return plan;
}

const Plan& PlanOf(Kind kind, const Key& key) {
  static std::mutex mutex;
  static auto* plans = new std::map<Key, Plan>;
  std::lock_guard<std::mutex> guard(mutex);
  auto found = plans->find(key);
  return (found != plans->end() ? found : plans->emplace(key, Planned(kind, key)).first)->second;
}

// kForward: a, kernel -> g; kInputGradient: kernel, g -> a; kKernelGradient: a, g -> kernel.
ffi::Error Compute(int64_t number, Numbers strides, Numbers lows, Numbers highs, Array first, Array second,
                   ffi::Result<Array> out) try {
  auto kind = static_cast<Kind>(number);
  const Array arrays[] = {first, second, *out};
  constexpr int places[3][3] = {{0, 1, 2}, {2, 0, 1}, {0, 2, 1}};  // of a, kernel and g, by kind
  const Array &as = arrays[places[kind][0]], &kernels = arrays[places[kind][1]], &gs = arrays[places[kind][2]];
  auto x = as.dimensions(), k = kernels.dimensions(), y = gs.dimensions();
  auto copied = [](Numbers numbers) { return memory::dims(numbers.begin(), numbers.end()); };
  auto& plan = PlanOf(kind, {{x[0], x[3], x[1], x[2]}, {k[3], k[2], k[0], k[1]}, {y[0], y[3], y[1], y[2]},
                             copied(strides), copied(lows), copied(highs), {number}});
  stream line(cpu());
  memory a(plan.a, cpu(), as.typed_data()), g(plan.g, cpu(), gs.typed_data());
  memory kernel(plan.kernel, cpu(), kernels.typed_data());
  bool turns = plan.liked != plan.kernel;
  memory liked = turns ? Room(0, plan.liked) : kernel;
  auto turn = [&](const memory& from, const memory& to) {
    auto scratch = Room(1, plan.turn_scratch);
    if (turns) plan.turn.execute(line, {{DNNL_ARG_FROM, from}, {DNNL_ARG_TO, to}, {DNNL_ARG_SCRATCHPAD, scratch}});
  };
  if (kind != kKernelGradient) turn(kernel, liked);
  plan.work.execute(line, {{kind == kInputGradient ? DNNL_ARG_DIFF_SRC : DNNL_ARG_SRC, a},
                             {kind == kKernelGradient ? DNNL_ARG_DIFF_WEIGHTS : DNNL_ARG_WEIGHTS, liked},
                             {kind == kForward ? DNNL_ARG_DST : DNNL_ARG_DIFF_DST, g},
                             {DNNL_ARG_SCRATCHPAD, Room(2, plan.scratch)}});
  if (kind == kKernelGradient) turn(liked, kernel);
  line.wait();
  return ffi::Error::Success();
} catch (const dnnl::error& failed) {
  return ffi::Error::Internal(failed.what());
}

XLA_FFI_DEFINE_HANDLER_SYMBOL(Convolution, Compute,
                              ffi::Ffi::Bind().Attr<int64_t>("kind").Attr<Numbers>("strides").Attr<Numbers>("lows")
                                  .Attr<Numbers>("highs").Arg<Array>().Arg<Array>().Ret<Array>());
