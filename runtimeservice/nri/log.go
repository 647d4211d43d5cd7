package nri

import (
	"context"
	"fmt"
	"log/slog"
	"strings"
)

// logger hands the library's messages to the daemon's log.
type logger struct{ log *slog.Logger }

// Debugf implements the library's Logger.
func (l logger) Debugf(_ context.Context, format string, args ...any) {
	l.log.Debug(fmt.Sprintf(format, args...))
}

// Infof implements the library's Logger.
func (l logger) Infof(_ context.Context, format string, args ...any) {
	l.log.Info(fmt.Sprintf(format, args...))
}

// Warnf implements the library's Logger.
func (l logger) Warnf(_ context.Context, format string, args ...any) {
	l.log.Warn(fmt.Sprintf(format, args...))
}

// Errorf implements the library's Logger.
func (l logger) Errorf(_ context.Context, format string, args ...any) {
	msg := fmt.Sprintf(format, args...)
	if strings.HasPrefix(msg, "failed to initialize WASM support") {
		l.log.Debug(msg) // built without, on purpose
		return
	}
	l.log.Error(msg)
}
