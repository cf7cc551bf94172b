// A pretended accelerator for tests: torch's device type PrivateUse1, with the CPU's memory and the CPU's kernels, and
// CUDA's rule that all tensors of an operator are on one device, except CPU tensors without dimensions.
//
// The few operators that allocate, view or copy are written here. All others reach `run_on_cpu`, which checks the rule,
// runs the CPU's kernel on the same memory, and puts new results on the device. An operator on which CUDA waits for the
// device is reported to the `Listener`.
#include <ATen/ATen.h>
#include <ATen/EmptyTensor.h>
#include <ATen/autocast_mode.h>
#include <ATen/detail/PrivateUse1HooksInterface.h>
#include <ATen/native/Resize.h>
#include <ATen/ops/_reshape_alias_native.h>
#include <ATen/ops/as_strided_native.h>
#include <ATen/ops/set_cpu_dispatch.h>
#include <ATen/ops/unfold_native.h>
#include <ATen/ops/view_as_complex_native.h>
#include <ATen/ops/view_as_real_native.h>
#include <ATen/ops/view_native.h>
#include <c10/core/impl/DeviceGuardImplInterface.h>
#include <c10/core/impl/alloc_cpu.h>
#include <torch/library.h>

#include <atomic>
#include <set>

namespace {

constexpr auto KIND = c10::DeviceType::PrivateUse1;
constexpr c10::DeviceIndex DEVICES = 2;

using Listener = void (*)(const char*);

bool is_available = false;
bool is_strict = false;  // refuse CPU indices too, which CUDA copies to the device at each use
Listener listener = nullptr;
std::atomic<int64_t> allocated{0}, peak{0};
std::atomic<int> current{0};  // one for all threads: each process uses one device

void report(const char* what) {
  if (listener) listener(what);
}

// ---------------------------------------------------------------------------------------------- memory and device

struct Block {
  void* data;
  size_t bytes;
};

void release(void* context) {
  auto* block = static_cast<Block*>(context);
  allocated -= block->bytes;
  c10::free_cpu(block->data);
  delete block;
}

struct Allocator final : c10::Allocator {
  c10::DataPtr allocate(size_t bytes) override {
    auto* block = new Block{bytes ? c10::alloc_cpu(bytes) : nullptr, bytes};
    const int64_t now = allocated += bytes;
    for (int64_t before = peak; before < now && !peak.compare_exchange_weak(before, now);) {
    }
    return {block->data, block, &release, c10::Device(KIND, current)};
  }
  c10::DeleterFnPtr raw_deleter() const override { return nullptr; }
  void copy_data(void* to, const void* from, std::size_t bytes) const override { std::memcpy(to, from, bytes); }
};
Allocator allocator;
REGISTER_ALLOCATOR(KIND, &allocator);

struct Guard final : c10::impl::DeviceGuardImplInterface {
  c10::DeviceType type() const override { return KIND; }
  c10::Device exchangeDevice(c10::Device device) const override {
    return {KIND, static_cast<c10::DeviceIndex>(current.exchange(device.index()))};
  }
  c10::Device getDevice() const override { return {KIND, static_cast<c10::DeviceIndex>(current)}; }
  void setDevice(c10::Device device) const override { current = device.index(); }
  void uncheckedSetDevice(c10::Device device) const noexcept override { current = device.index(); }
  c10::Stream getStream(c10::Device device) const override { return c10::Stream(c10::Stream::DEFAULT, device); }
  c10::Stream getDefaultStream(c10::Device device) const override { return c10::Stream(c10::Stream::DEFAULT, device); }
  c10::Stream exchangeStream(c10::Stream stream) const override { return stream; }
  c10::DeviceIndex deviceCount() const noexcept override { return DEVICES; }
  bool queryStream(const c10::Stream&) const override { return true; }
  void synchronizeStream(const c10::Stream&) const override {}
  void record(void**, const c10::Stream&, const c10::DeviceIndex, const c10::EventFlag) const override {}
  void block(void*, const c10::Stream&) const override {}
  bool queryEvent(void*) const override { return true; }
  void destroyEvent(void*, const c10::DeviceIndex) const noexcept override {}
  void synchronizeEvent(void*) const override {}
  void synchronizeDevice(const c10::DeviceIndex) const override {}
};
C10_REGISTER_GUARD_IMPL(PrivateUse1, Guard);

void resize_storage(c10::StorageImpl* storage, size_t bytes) {
  auto fresh = allocator.allocate(bytes);
  std::memcpy(fresh.get(), storage->data(), std::min(bytes, storage->nbytes()));
  storage->set_data_ptr_noswap(std::move(fresh));
  storage->set_nbytes(bytes);
}

struct Hooks final : at::PrivateUse1HooksInterface {
  bool isBuilt() const override { return true; }
  bool isAvailable() const override { return is_available; }
  bool hasPrimaryContext(c10::DeviceIndex) const override { return is_available; }
  c10::DeviceIndex deviceCount() const override { return DEVICES; }
  c10::DeviceIndex getCurrentDevice() const override { return current; }
  void setCurrentDevice(c10::DeviceIndex index) const override { current = index; }
  c10::DeviceIndex exchangeDevice(c10::DeviceIndex index) const override { return current.exchange(index); }
  c10::DeviceIndex maybeExchangeDevice(c10::DeviceIndex index) const override { return current.exchange(index); }
  at::Device getDeviceFromPtr(void*) const override { return {KIND, static_cast<c10::DeviceIndex>(current)}; }
  c10::Allocator* getPinnedMemoryAllocator() const override { return c10::GetCPUAllocator(); }
  void resizePrivateUse1Bytes(const c10::Storage& storage, size_t bytes) const override {
    resize_storage(storage.unsafeGetStorageImpl(), bytes);
  }
};
Hooks hooks;

bool is_here(const at::Tensor& tensor) { return tensor.defined() && tensor.device().type() == KIND; }

// A CPU tensor on the memory of a tensor of the device. Other tensors are returned as they are.
at::Tensor as_cpu(const at::Tensor& tensor) {
  if (!is_here(tensor)) return tensor;
  auto* storage = tensor.storage().unsafeGetStorageImpl();
  c10::DataPtr borrowed(const_cast<void*>(storage->data()), c10::Device(at::kCPU));
  c10::Storage same(c10::make_intrusive<c10::StorageImpl>(
      c10::StorageImpl::use_byte_size_t(), storage->nbytes(), std::move(borrowed), c10::GetCPUAllocator(), true));
  auto made = at::detail::make_tensor<c10::TensorImpl>(
      std::move(same), c10::DispatchKeySet(c10::DispatchKey::CPU), tensor.dtype());
  auto* impl = made.unsafeGetTensorImpl();
  impl->set_sizes_and_strides(tensor.sizes(), tensor.strides(), tensor.storage_offset());
  if (tensor.unsafeGetTensorImpl()->is_wrapped_number()) impl->set_wrapped_number(true);
  made._set_conj(tensor.is_conj());
  made._set_neg(tensor.is_neg());
  return made;
}

// ------------------------------------------------------------------------- operators that allocate, view and copy

const c10::DispatchKeySet KEYS(c10::DispatchKey::PrivateUse1);

struct On {  // sets the device on which a block allocates
  explicit On(std::optional<at::Device> device) : before(current) {
    if (device && device->has_index()) current = device->index();
  }
  ~On() { current = before; }
  int before;
};

at::Tensor empty(c10::SymIntArrayRef size, std::optional<at::ScalarType> dtype, std::optional<at::Layout>,
                 std::optional<at::Device> device, std::optional<bool>, std::optional<at::MemoryFormat> format) {
  On on(device);
  const auto sizes = C10_AS_INTARRAYREF_SLOW(size);
  return at::detail::empty_generic(sizes, &allocator, KEYS, c10::dtype_or_default(dtype), format);
}

at::Tensor empty_strided(c10::SymIntArrayRef size, c10::SymIntArrayRef stride, std::optional<at::ScalarType> dtype,
                         std::optional<at::Layout>, std::optional<at::Device> device, std::optional<bool>) {
  On on(device);
  return at::detail::empty_strided_generic(C10_AS_INTARRAYREF_SLOW(size), C10_AS_INTARRAYREF_SLOW(stride), &allocator,
                                           KEYS, c10::dtype_or_default(dtype));
}

const at::Tensor& resize_(const at::Tensor& self, c10::SymIntArrayRef size, std::optional<at::MemoryFormat>) {
  const auto sizes = C10_AS_INTARRAYREF_SLOW(size);
  const size_t bytes = (self.storage_offset() + c10::multiply_integers(sizes)) * self.itemsize();
  auto* storage = self.storage().unsafeGetStorageImpl();
  if (bytes > storage->nbytes()) resize_storage(storage, bytes);
  self.unsafeGetTensorImpl()->set_sizes_contiguous(sizes);
  return self;
}

at::Tensor copy_from(const at::Tensor& from, const at::Tensor& to, bool non_blocking) {
  if (is_here(from) != is_here(to) && !non_blocking) report(is_here(from) ? "copy to the CPU" : "copy to the device");
  as_cpu(to).copy_(as_cpu(from));
  return to;
}

at::Tensor copy_from_and_resize(const at::Tensor& from, const at::Tensor& to) {
  resize_(to, c10::fromIntArrayRefSlow(from.sizes()), std::nullopt);
  return copy_from(from, to, false);
}

at::Tensor& set_part_of_storage(at::Tensor& self, at::Storage source, c10::SymInt offset, c10::SymIntArrayRef size,
                                c10::SymIntArrayRef stride) {
  const auto sizes = C10_AS_INTARRAYREF_SLOW(size);
  return at::cpu::set_(self, source, offset.expect_int(), sizes, C10_AS_INTARRAYREF_SLOW(stride));
}

at::Tensor& set_storage(at::Tensor& self, at::Storage source) {
  return at::cpu::set_(self, source, 0, {static_cast<int64_t>(source.nbytes() / self.itemsize())}, {});
}

at::Tensor& set_nothing(at::Tensor& self) {
  return set_storage(self, c10::Storage(c10::make_intrusive<c10::StorageImpl>(
                               c10::StorageImpl::use_byte_size_t(), 0, allocator.allocate(0), &allocator, true)));
}

at::Tensor view(const at::Tensor& self, c10::SymIntArrayRef size) {
  return at::native::view(self, C10_AS_INTARRAYREF_SLOW(size));
}

at::Tensor as_strided(const at::Tensor& self, c10::SymIntArrayRef size, c10::SymIntArrayRef stride,
                      std::optional<c10::SymInt> offset) {
  const auto start = offset ? std::optional<int64_t>(offset->expect_int()) : std::nullopt;
  return at::native::as_strided_tensorimpl(self, C10_AS_INTARRAYREF_SLOW(size), C10_AS_INTARRAYREF_SLOW(stride), start);
}

at::Tensor reshape_alias(const at::Tensor& self, c10::SymIntArrayRef size, c10::SymIntArrayRef stride) {
  return at::native::_reshape_alias(self, C10_AS_INTARRAYREF_SLOW(size), C10_AS_INTARRAYREF_SLOW(stride));
}

// --------------------------------------------------------------------------------------------- all other operators

// Operators whose indices may be on the CPU on CUDA as well.
const std::set<std::string> INDEXING = {"aten::index",     "aten::_unsafe_index",     "aten::index_put",
                                        "aten::index_put_", "aten::_index_put_impl_", "aten::_unsafe_index_put"};
// Operators for whose result, or its shape, CUDA waits.
const std::set<std::string> WAITING = {"aten::_local_scalar_dense", "aten::nonzero",          "aten::masked_select",
                                       "aten::equal",               "aten::_unique2",         "aten::unique_dim",
                                       "aten::unique_consecutive",  "aten::repeat_interleave", "aten::bincount"};

using Pair = std::pair<at::Tensor, at::Tensor>;  // a tensor of the device, and the same memory as a CPU tensor

struct Call {
  const c10::FunctionSchema& schema;
  std::optional<at::Device> device;
  std::vector<Pair> written;

  void find_device(const c10::IValue& value) {
    auto look = [&](const at::Tensor& tensor) {
      if (is_here(tensor) && !device) device = tensor.device();
    };
    if (value.isTensor()) look(value.toTensor());
    if (value.isTensorList())
      for (const at::Tensor& tensor : value.toTensorVector()) look(tensor);
    if (value.isOptionalTensorList())
      for (const auto& tensor : value.toOptionalTensorVector()) look(tensor.value_or(at::Tensor()));
    if (value.isDevice() && value.toDevice().type() == KIND && !device) device = value.toDevice();
  }

  void require_one_device(const at::Tensor& tensor, const c10::Argument& argument, bool is_index) const {
    if (!device || !tensor.defined() || tensor.is_meta()) return;
    if (is_here(tensor) ? tensor.device() == *device || !device->has_index() : tensor.dim() == 0) return;
    if (is_index && !is_here(tensor) && !is_strict) return report("index on the CPU");
    TORCH_CHECK(false, "Expected all tensors to be on the same device, but found at least two devices, ", *device,
                " and ", tensor.device(), "! (argument ", argument.name(), " of shape ", tensor.sizes(), " of ",
                schema.name(), ")");
  }

  at::Tensor lend(const at::Tensor& tensor, const c10::Argument& argument, bool is_index = false) {
    require_one_device(tensor, argument, is_index);
    auto lent = as_cpu(tensor);
    if (is_here(tensor) && argument.alias_info() && argument.alias_info()->isWrite()) written.emplace_back(tensor, lent);
    return lent;
  }

  c10::IValue lend(const c10::IValue& value, const c10::Argument& argument) {
    if (value.isTensor()) return lend(value.toTensor(), argument);
    if (value.isTensorList()) {
      std::vector<at::Tensor> lent;
      for (const at::Tensor& tensor : value.toTensorVector()) lent.push_back(lend(tensor, argument));
      return lent;
    }
    if (value.isOptionalTensorList()) {
      c10::List<std::optional<at::Tensor>> lent;
      for (const auto& tensor : value.toOptionalTensorVector())
        lent.push_back(tensor ? std::optional(lend(*tensor, argument, INDEXING.count(schema.name()) > 0)) : tensor);
      return lent;
    }
    return value.isDevice() ? c10::IValue(at::Device(at::kCPU)) : value;
  }

  // An `out=` that the kernel gave other memory has its result copied.
  void finish_written() const {
    for (const auto& [own, lent] : written)
      if (lent.data_ptr() != own.data_ptr() || lent.sizes() != own.sizes()) {
        resize_(own, c10::fromIntArrayRefSlow(lent.sizes()), std::nullopt);
        as_cpu(own).copy_(lent);
      }
  }

  at::Tensor take_back(const at::Tensor& result) const {
    for (const auto& [own, lent] : written)
      if (lent.is_same(result)) return own;
    if (!result.defined() || !device) return result;
    On on(*device);
    at::Tensor made = at::detail::empty_strided_generic(result.sizes(), result.strides(), &allocator, KEYS,
                                                        result.scalar_type());
    as_cpu(made).copy_(result);
    return made;
  }

  c10::IValue take_back(const c10::IValue& value, const c10::Argument& returned) const {
    const auto* alias = returned.alias_info();
    TORCH_CHECK(!device || !alias || alias->isWrite(), "the pretended device lacks the view ", schema.name());
    if (value.isTensor()) return take_back(value.toTensor());
    if (!value.isTensorList()) return value;
    std::vector<at::Tensor> made;
    for (const at::Tensor& tensor : value.toTensorVector()) made.push_back(take_back(tensor));
    return made;
  }
};

// CUDA waits for the number of true elements of a mask, unless all get the same value. `index` calls `nonzero` itself.
bool puts_by_mask(const c10::FunctionSchema& schema, const c10::IValue* given) {
  if (!INDEXING.count(schema.name()) || schema.arguments().size() < 3) return false;
  if (schema.arguments()[2].name() != "values" || given[2].toTensor().numel() == 1) return false;
  for (const auto& index : given[1].toOptionalTensorVector())
    if (index && is_here(*index) && index->scalar_type() == at::kBool) return true;
  return false;
}

void run_on_cpu(const c10::OperatorHandle& op, torch::jit::Stack* stack) {
  Call call{op.schema(), std::nullopt, {}};
  const auto& arguments = call.schema.arguments();
  const auto& returns = call.schema.returns();
  const auto given = stack->end() - static_cast<ptrdiff_t>(arguments.size());
  for (auto value = given; value != stack->end(); ++value) call.find_device(*value);
  if (call.device && WAITING.count(call.schema.name())) report(call.schema.name().c_str());
  if (call.device && puts_by_mask(call.schema, &*given)) report("index_put by a mask");
  for (size_t i = 0; i < arguments.size(); i++) given[i] = call.lend(given[i], arguments[i]);
  {
    c10::impl::ExcludeDispatchKeyGuard without_autograd(c10::autograd_dispatch_keyset);
    op.redispatchBoxed(c10::DispatchKeySet(c10::DispatchKey::CPU), stack);
  }
  call.finish_written();
  const auto results = stack->end() - static_cast<ptrdiff_t>(returns.size());
  for (size_t i = 0; i < returns.size(); i++) results[i] = call.take_back(results[i], returns[i]);
}

TORCH_LIBRARY_IMPL(aten, PrivateUse1, library) {
  library.impl("empty.memory_format", &empty);
  library.impl("empty_strided", &empty_strided);
  library.impl("resize_", &resize_);
  library.impl("_copy_from", &copy_from);
  library.impl("_copy_from_and_resize", &copy_from_and_resize);
  library.impl("set_.source_Storage_storage_offset", &set_part_of_storage);
  library.impl("set_.source_Storage", &set_storage);
  library.impl("set_", &set_nothing);
  library.impl("view", &view);
  library.impl("as_strided", &as_strided);
  library.impl("_reshape_alias", &reshape_alias);
  library.impl("unfold", &at::native::unfold);
  library.impl("view_as_real", &at::native::view_as_real);
  library.impl("view_as_complex", &at::native::view_as_complex);
}

TORCH_LIBRARY_IMPL(_, PrivateUse1, library) {
  library.fallback(torch::CppFunction::makeFromBoxedFunction<&run_on_cpu>());
}

TORCH_LIBRARY_IMPL(_, AutocastPrivateUse1, library) { library.fallback(torch::CppFunction::makeFallthrough()); }

TORCH_LIBRARY(pretend, library) {
  library.def("as_cpu(Tensor tensor) -> Tensor", torch::dispatch(c10::DispatchKey::CompositeExplicitAutograd, &as_cpu));
}

}  // namespace

TORCH_LIBRARY_IMPL(aten, AutocastPrivateUse1, m) {
  KERNEL_PRIVATEUSEONE(linear, lower_precision_fp)
  KERNEL_PRIVATEUSEONE(matmul, lower_precision_fp)
  KERNEL_PRIVATEUSEONE(mm, lower_precision_fp)
  KERNEL_PRIVATEUSEONE(bmm, lower_precision_fp)
  KERNEL_PRIVATEUSEONE(addmm, lower_precision_fp)
  KERNEL_PRIVATEUSEONE(baddbmm, lower_precision_fp)
  KERNEL_PRIVATEUSEONE(scaled_dot_product_attention, lower_precision_fp)
}

// What tests/pretend/device.py calls by ctypes.
extern "C" {
void pretend_register() { at::RegisterPrivateUse1HooksInterface(&hooks); }
void pretend_set_available(bool on) { is_available = on; }
void pretend_set_strict(bool on) { is_strict = on; }
void pretend_set_listener(Listener given) { listener = given; }
void pretend_set_device(int index) { current = index; }
int pretend_device() { return current; }
int pretend_device_count() { return DEVICES; }
int64_t pretend_allocated() { return allocated; }
int64_t pretend_peak() { return peak; }
void pretend_reset_peak() { peak = allocated.load(); }
}
