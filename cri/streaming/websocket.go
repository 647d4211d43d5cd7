package streaming

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net/http"

	"k8s.io/cri-streaming/pkg/streaming/remotecommand"
	"k8s.io/streaming/pkg/httpstream/wsstream"
	utilexec "k8s.io/utils/exec"
)

// Version 5 of the remote command protocol over WebSocket is version 4 and a
// signal by which the client closes one channel, above all stdin. It is what
// kubectl and crictl speak; k8s.io/cri-streaming ends at version 4.
const protocolV5 = remotecommand.StreamProtocolV5Name

// Channels of the protocol.
const (
	channelStdin = iota
	channelStdout
	channelStderr
	channelError
	channelResize
	channels
)

// streams are the ends of a session that its process gets; nil: not asked for.
type streams struct {
	in       io.Reader
	out, err io.WriteCloser
	resize   <-chan remotecommand.TerminalSize
}

// serveV5 upgrades a request, runs a session on it, and tells the client how
// the session ended.
func (s *Server) serveV5(w http.ResponseWriter, r *http.Request, o remotecommand.Options, run func(streams) error) {
	kinds := make([]wsstream.ChannelType, channels)
	want := func(i int, asked bool, kind wsstream.ChannelType) {
		if asked {
			kinds[i] = kind
		}
	}
	want(channelStdin, o.Stdin, wsstream.ReadChannel)
	want(channelStdout, o.Stdout, wsstream.WriteChannel)
	want(channelStderr, o.Stderr, wsstream.WriteChannel)
	want(channelError, true, wsstream.WriteChannel)
	want(channelResize, true, wsstream.ReadChannel)
	conn := wsstream.NewConn(map[string]wsstream.ChannelProtocolConfig{protocolV5: {Binary: true, Channels: kinds}})
	conn.SetIdleTimeout(s.idle)
	_, ch, err := conn.Open(w, r)
	if err != nil {
		s.log.Debug("a streaming client's WebSocket upgrade failed", "error", err)
		return
	}
	defer func() { _ = conn.Close() }() // the session is over either way
	var st streams
	if o.Stdin {
		st.in = ch[channelStdin]
	}
	if o.Stdout {
		st.out = ch[channelStdout]
	}
	if o.Stderr {
		st.err = ch[channelStderr]
	}
	// An empty message tells the client that the session is up.
	_, _ = ch[channelError].Write(nil)
	sizes := make(chan remotecommand.TerminalSize)
	st.resize = sizes
	go readSizes(r.Context(), ch[channelResize], sizes)
	status, err := json.Marshal(statusOf(run(st)))
	if err == nil {
		_, err = ch[channelError].Write(status)
	}
	if err != nil {
		s.log.Debug("a streaming client did not hear how its session ended", "error", err)
	}
}

// readSizes passes terminal sizes on until their channel or ctx ends.
func readSizes(ctx context.Context, from io.Reader, to chan<- remotecommand.TerminalSize) {
	defer close(to)
	for d := json.NewDecoder(from); ; {
		var size remotecommand.TerminalSize
		if d.Decode(&size) != nil {
			return
		}
		select {
		case to <- size:
		case <-ctx.Done():
			return
		}
	}
}

// endStatus is how a session ended, in the form of a metav1.Status.
type endStatus struct {
	Status  string      `json:"status"`
	Message string      `json:"message,omitempty"`
	Reason  string      `json:"reason,omitempty"`
	Details *endDetails `json:"details,omitempty"`
	Code    int         `json:"code,omitempty"`
}

type endDetails struct {
	Causes []endCause `json:"causes,omitempty"`
}

type endCause struct {
	Type    string `json:"reason"`
	Message string `json:"message"`
}

// statusOf makes the status of a session's result. Pure.
func statusOf(err error) endStatus {
	var exit utilexec.ExitError
	switch {
	case err == nil:
		return endStatus{Status: "Success"}
	case errors.As(err, &exit) && exit.Exited():
		return endStatus{
			Status: "Failure", Reason: string(remotecommand.NonZeroExitCodeReason),
			Message: fmt.Sprintf("command terminated with non-zero exit code: %v", exit),
			Details: &endDetails{Causes: []endCause{{Type: string(remotecommand.ExitCodeCauseType), Message: fmt.Sprint(exit.ExitStatus())}}},
		}
	default:
		return endStatus{
			Status: "Failure", Reason: "InternalError", Code: http.StatusInternalServerError,
			Message: fmt.Sprintf("Internal error occurred: %v", err),
		}
	}
}
