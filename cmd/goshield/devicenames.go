package main

import (
	"context"
	"encoding/csv"
	"errors"
	"fmt"
	"io"
	"os"
	"strings"
	"sync"
	"time"

	"github.com/spf13/cobra"
	"github.com/spf13/pflag"

	"github.com/goshield/goshield/sdk/wire"
)

const (
	// workers is how many devices of a list are worked on at once.
	workers = 8
	// longList is from how many devices on there is a progress bar, on a terminal.
	longList = 50
	// redrawEvery is how often it is drawn.
	redrawEvery = 100 * time.Millisecond
	// mostFailures is how many failures of a list are told one by one.
	mostFailures = 10
)

// deviceName is a device as it was typed.
type deviceName struct {
	text string
	id   wire.ClientID
}

// deviceNames are the devices that a command is about: arguments, and a file.
type deviceNames struct{ file string }

func (d *deviceNames) addFlag(flags *pflag.FlagSet) {
	flags.StringVar(&d.file, "file", "", "CSV `file` whose first column names devices; - is standard input")
}

// read reads all names; it wants at least one.
func (d *deviceNames) read(args []string, stdin io.Reader) ([]deviceName, error) {
	names := make([]deviceName, 0, len(args))
	for _, text := range args {
		id, err := parseDevice(text)
		if err != nil {
			return nil, usagef("%q names no device: %w", text, err)
		}
		names = append(names, deviceName{strings.TrimSpace(text), id})
	}
	if d.file != "" {
		more, err := d.readFile(stdin)
		if err != nil {
			return nil, fmt.Errorf("--file: %w", err)
		}
		names = append(names, more...)
	}
	if len(names) == 0 {
		return nil, usagef("name devices, by MAC or client_id, or a CSV file of them with --file")
	}
	return names, nil
}

func (d *deviceNames) readFile(stdin io.Reader) ([]deviceName, error) {
	if d.file == "-" {
		return readNames("standard input", stdin)
	}
	f, err := os.Open(d.file)
	if err != nil {
		return nil, err
	}
	defer f.Close()
	return readNames(d.file, f)
}

// readNames reads the first column. The first line may be a heading; empty lines and those that begin with # are
// passed over.
func readNames(what string, in io.Reader) ([]deviceName, error) {
	r := csv.NewReader(in)
	r.Comment, r.FieldsPerRecord, r.ReuseRecord = '#', -1, true
	var names []deviceName
	for first := true; ; first = false {
		record, err := r.Read()
		if errors.Is(err, io.EOF) {
			return names, nil
		}
		if err != nil {
			return nil, fmt.Errorf("%s: %w", what, err)
		}
		text := strings.TrimSpace(strings.TrimPrefix(record[0], "\ufeff"))
		id, err := parseDevice(text)
		switch {
		case err == nil:
			names = append(names, deviceName{text, id})
		case !first:
			line, _ := r.FieldPos(0)
			return nil, usagef("%s: line %d: %q names no device: %w", what, line, text, err)
		}
	}
}

// newEach is a command that does one thing with each of its devices.
func (c *deviceCommand) newEach(use, short, done string, do func(context.Context, wire.ClientID) error) *cobra.Command {
	var names deviceNames
	cmd := &cobra.Command{
		Use:   use + " [DEVICE…]",
		Short: short,
		RunE: func(cmd *cobra.Command, args []string) error {
			list, err := names.read(args, cmd.InOrStdin())
			if err != nil {
				return err
			}
			if err := c.connect(cmd); err != nil {
				return err
			}
			defer c.close()
			return c.doEach(cmd, list, done, do)
		},
	}
	names.addFlag(cmd.Flags())
	return cmd
}

func (c *deviceCommand) close() {
	c.auths.close()
	c.pushes.close()
}

// tally is how far a list has come. Its methods are safe for concurrent use.
type tally struct {
	mu       sync.Mutex
	done     int
	failures []error
	failed   int
}

func (t *tally) add(err error) {
	t.mu.Lock()
	defer t.mu.Unlock()
	if err == nil {
		t.done++
		return
	}
	if t.failed++; t.failed <= mostFailures {
		t.failures = append(t.failures, err)
	}
}

func (t *tally) counts() (done, failed int) {
	t.mu.Lock()
	defer t.mu.Unlock()
	return t.done, t.failed
}

// doEach works through the list, a few devices at once, to its end. It fails if one of them did.
func (c *deviceCommand) doEach(cmd *cobra.Command, list []deviceName, done string, do func(context.Context, wire.ClientID) error) error {
	t := &tally{}
	stop := c.showProgress(cmd, t, len(list))
	next := make(chan deviceName)
	var working sync.WaitGroup
	for range min(workers, len(list)) {
		working.Go(func() {
			for n := range next {
				err := do(cmd.Context(), n.id)
				if err != nil {
					err = fmt.Errorf("%s: %w", n.text, err)
				}
				t.add(err)
			}
		})
	}
	for _, n := range list {
		next <- n
	}
	close(next)
	working.Wait()
	stop()
	if t.failed > len(t.failures) {
		t.failures = append(t.failures, fmt.Errorf("and %d more", t.failed-len(t.failures)))
	}
	if c.json {
		if err := printJSON(cmd.OutOrStdout(), map[string]int{done: t.done, "failed": t.failed}); err != nil {
			return err
		}
	} else if t.done > 0 {
		fmt.Fprintf(cmd.OutOrStdout(), "%s %d of %d\n", done, t.done, len(list))
	}
	return errors.Join(t.failures...)
}

// showProgress draws a bar for a long list, if there is a terminal to draw on, until the function it returns is called.
func (c *deviceCommand) showProgress(cmd *cobra.Command, t *tally, total int) (stop func()) {
	live := terminalOf(cmd.ErrOrStderr())
	if live == nil || total < longList {
		return func() {}
	}
	end := make(chan struct{})
	var drawing sync.WaitGroup
	drawing.Go(func() {
		tick := time.NewTicker(redrawEvery)
		defer tick.Stop()
		for {
			done, failed := t.counts()
			fmt.Fprintf(live, "\r\x1b[K%s", progressBar(done, failed, total))
			select {
			case <-tick.C:
			case <-end:
				fmt.Fprint(live, "\r\x1b[K")
				return
			}
		}
	})
	return func() { close(end); drawing.Wait() }
}

// progressBar is one line: [#####     ]  50%  500 of 1000, 3 failed.
func progressBar(done, failed, total int) string {
	const width = 30
	filled := (done + failed) * width / total
	text := fmt.Sprintf("[%s%s] %3d%%  %d of %d", strings.Repeat("#", filled), strings.Repeat(" ", width-filled),
		(done+failed)*100/total, done+failed, total)
	if failed > 0 {
		text += fmt.Sprintf(", %d failed", failed)
	}
	return text
}
