// Command berth-verify decides whether signatures of an image are those that a
// rule wants. berthd runs it once for each image it verifies: the request comes
// on standard input, the verdict goes to standard output.
package main

import (
	"fmt"
	"os"

	"github.com/berth-dev/berth/imageservice/signature/check"
)

// version is set by the build.
var version = "0.1.0-dev"

func main() {
	if len(os.Args) > 1 {
		if os.Args[1] == "--version" {
			fmt.Println("berth-verify", version)
			return
		}
		fmt.Fprintln(os.Stderr, "berth-verify takes no arguments; berthd runs it")
		os.Exit(2)
	}
	os.Exit(check.Main())
}
