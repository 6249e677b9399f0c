package gateway

import (
	"os"
	"slices"
	"time"
)

// filesCheck is how often, at most, files that are followed are looked at.
const filesCheck = time.Second

// followedFiles are files that are read again when one of them changes. They are for one goroutine at a time.
type followedFiles struct {
	paths   []string
	checked time.Time
	read    []fileState // of the files that were read last; nil: they could not be read since
	away    bool        // they cannot be read, and who has them was told
}

// fileState tells one file from the one that takes its place.
type fileState struct {
	modified time.Time
	size     int64
}

// changed is the files' contents if there are new ones; nil if there are none, or if it was asked less than filesCheck ago. That they
// cannot be read, as without a descriptor to spare, is an error once, and is tried again until they can.
func (f *followedFiles) changed() (contents [][]byte, err error) {
	if time.Since(f.checked) < filesCheck {
		return nil, nil
	}
	f.checked = time.Now()
	contents, err = f.readAgain()
	told := f.away
	f.away = err != nil
	if told {
		err = nil
	}
	return contents, err
}

// readAgain reads the files unless they are those that were read last.
func (f *followedFiles) readAgain() (contents [][]byte, err error) {
	before := f.read
	f.read = nil
	now := make([]fileState, len(f.paths))
	for i, path := range f.paths {
		info, err := os.Stat(path)
		if err != nil {
			return nil, err
		}
		now[i] = fileState{info.ModTime(), info.Size()}
	}
	if slices.Equal(now, before) {
		f.read = now
		return nil, nil
	}
	contents = make([][]byte, len(f.paths))
	for i, path := range f.paths {
		if contents[i], err = os.ReadFile(path); err != nil {
			return nil, err
		}
	}
	f.read = now
	return contents, nil
}
