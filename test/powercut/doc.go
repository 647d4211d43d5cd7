// Package powercut proves that a power cut leaves the old state or the new one.
//
// The image store works on a real file system, on a loop device whose backing
// file is served over FUSE by the test: every write that the file system sends
// to its disk, and every flush, is recorded in order. Then, for each point of
// that log, a disk is made as a power cut may have left it: all that was flushed
// is there; of what came after the last flush all, nothing, or any part, down
// to single sectors. A node starts on that disk, and is looked at.
package powercut
