package main

import (
	"errors"
	"fmt"
	"io"
	"net"
)

// echo serves TCP: it reads all until the client has closed its half, and only
// then sends it back.
func echo(args []string) error {
	return serveTCP(args, func(c *net.TCPConn) {
		b, _ := io.ReadAll(c)
		_, _ = c.Write(b)
	})
}

// early serves TCP: it says all it has to say and closes its half, and then
// prints how much the client sends.
func early(args []string) error {
	return serveTCP(args, func(c *net.TCPConn) {
		_, _ = c.Write([]byte("bye"))
		_ = c.CloseWrite()
		b, err := io.ReadAll(c)
		fmt.Println("got", len(b), err)
	})
}

func serveTCP(args []string, f func(*net.TCPConn)) error {
	if len(args) == 0 {
		return errors.New(usage)
	}
	l, err := net.Listen("tcp", args[0])
	if err != nil {
		return err
	}
	fmt.Println("listening on", l.Addr())
	for {
		c, err := l.Accept()
		if err != nil {
			return err
		}
		go func() {
			f(c.(*net.TCPConn))
			_ = c.Close()
			fmt.Println("connection ended")
		}()
	}
}
