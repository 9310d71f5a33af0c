// The runtime of a plug-in that initialises on first use.
bool fake_is_initialised() { return true; }
