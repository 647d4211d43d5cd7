package main

import (
	"errors"
	"fmt"
	"os"
	"time"
)

// await waits until a file is there and goes on as another command.
func await(args []string) error {
	if len(args) < 2 {
		return errors.New(usage)
	}
	for {
		if _, err := os.Stat(args[0]); err == nil {
			break
		}
		time.Sleep(100 * time.Millisecond)
	}
	fmt.Println("go")
	return run(args[1], args[2:])
}
