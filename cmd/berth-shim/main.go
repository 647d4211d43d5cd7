// Command berth-shim stands by one container: it owns its stdio, log, exit
// record, exec and attach sessions. See package supervise for its modes.
package main

import "github.com/berth-dev/berth/shim/supervise"

func main() { supervise.Main() }
