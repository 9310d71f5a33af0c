// The runtime of a plug-in built with the old C++ ABI: std::string has another name there.
bool fake_is_initialised() { return true; }

extern "C" {
void init_of_old_abi(const void*) asm("_ZN9torch_npu8init_npuERKSs");
void init_of_old_abi(const void*) {}
}
