// The runtime of a plug-in built for a libtorch that has a function which this one lacks.
namespace c10 {
bool of_another_version();
}

bool fake_is_initialised() { return c10::of_another_version(); }
