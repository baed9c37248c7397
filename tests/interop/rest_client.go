// A client of the REST port with the websocket library of Akash's command line, and its rule for pings: the read deadline
// of 15 s is set when the client connects, and only a received ping renews it. It reads slowly at first, for longer than
// that, so a ping that waits behind unread data would end it. Follows logs and checks that no line is lost.
//
// Run by `tests/it/interop.rs`. Reports and fails as `rest_client.py` does; prints `slow` when it has read slowly.
package main

import (
	"crypto/tls"
	"crypto/x509"
	"flag"
	"fmt"
	"log"
	"net/http"
	"os"
	"time"

	"github.com/gorilla/websocket"
)

const pingWait = 15 * time.Second

type entry struct {
	Name, Message string
	Notice        *struct {
		Kind  string
		Lines uint64
	}
}

// The lines of one replica. They have numbers from 1 in each run, continue after gaps, and have the same text.
type replica struct {
	runs       int
	last, lost uint64
	started    bool
}

func (r *replica) take(e entry, text string) {
	if e.Notice != nil {
		if e.Notice.Kind == "gap" {
			r.lost += e.Notice.Lines
			fmt.Println("gap")
		}
		if e.Notice.Kind == "end" {
			fmt.Println("notice", e.Message)
		}
		r.started = r.started || e.Notice.Kind == "started"
		return
	}
	var number uint64
	fmt.Sscan(e.Message, &number)
	if e.Message != fmt.Sprintf("%d %s", number, text) {
		log.Fatalf("%s: not a line of this service: %q", e.Name, e.Message)
	}
	if r.runs == 0 && number == r.lost+1 || r.started && number == 1 {
		r.runs++
		fmt.Println("run", e.Name, r.runs)
	} else if number != r.last+r.lost+1 {
		log.Fatalf("%s: line %d after line %d and %d lost lines", e.Name, number, r.last, r.lost)
	}
	r.last, r.lost, r.started = number, 0, false
}

func main() {
	url, token, ca := flag.String("url", "", ""), flag.String("token", "", ""), flag.String("ca", "", "")
	text := flag.String("text", "", "text of each line, after its number")
	slow, pause := flag.Duration("slow", 0, "time of slow reading"), flag.Duration("pause", 0, "pause after each frame in that time")
	flag.Parse()
	pem, err := os.ReadFile(*ca)
	if err != nil {
		log.Fatal(err)
	}
	roots := x509.NewCertPool()
	roots.AppendCertsFromPEM(pem)
	dialer := websocket.Dialer{TLSClientConfig: &tls.Config{RootCAs: roots}, HandshakeTimeout: pingWait}
	conn, _, err := dialer.Dial(*url, http.Header{"Authorization": {"Bearer " + *token}})
	if err != nil {
		log.Fatal(err)
	}
	conn.SetReadDeadline(time.Now().Add(pingWait))
	conn.SetPingHandler(func(data string) error {
		conn.SetReadDeadline(time.Now().Add(pingWait))
		return conn.WriteControl(websocket.PongMessage, []byte(data), time.Now().Add(time.Second))
	})
	replicas, begin := map[string]*replica{}, time.Now()
	for {
		var e entry
		if err := conn.ReadJSON(&e); err != nil {
			closed, ok := err.(*websocket.CloseError)
			if !ok {
				log.Fatal(err)
			}
			fmt.Println("end", closed.Code)
			return
		}
		if replicas[e.Name] == nil {
			replicas[e.Name] = &replica{}
		}
		replicas[e.Name].take(e, *text)
		if *slow > 0 {
			if time.Since(begin) < *slow {
				time.Sleep(*pause)
			} else {
				fmt.Println("slow")
				*slow = 0
			}
		}
	}
}
