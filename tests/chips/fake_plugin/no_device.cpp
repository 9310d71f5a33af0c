// A library of the right name that is no plug-in.
int pelago_no_device() { return 0; }
