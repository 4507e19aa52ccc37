package main

import (
	"context"
	"net"
	"strings"

	"golang.org/x/net/dns/dnsmessage"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/client-go/kubernetes"
	"k8s.io/client-go/tools/clientcmd"
)

// The names of Services, which CoreDNS answers in other clusters: `SERVICE.NAMESPACE.svc`, with or without the
// cluster's domain. Every other name does not exist.
func answerNames(kubeconfig string) error {
	config, err := clientcmd.BuildConfigFromFlags("", kubeconfig)
	if err != nil {
		return err
	}
	api, err := kubernetes.NewForConfig(config)
	if err != nil {
		return err
	}
	socket, err := net.ListenPacket("udp", nodeAddress+":53")
	if err != nil {
		return err
	}
	packet := make([]byte, 512)
	for {
		length, peer, err := socket.ReadFrom(packet)
		if err != nil {
			return err
		}
		var query dnsmessage.Message
		if query.Unpack(packet[:length]) != nil || len(query.Questions) != 1 {
			continue
		}
		answer, err := answerTo(api, query)
		if err != nil {
			return err
		}
		if _, err := socket.WriteTo(answer, peer); err != nil {
			return err
		}
	}
}

func answerTo(api kubernetes.Interface, query dnsmessage.Message) ([]byte, error) {
	question := query.Questions[0]
	reply := dnsmessage.Message{
		Header:    dnsmessage.Header{ID: query.ID, Response: true, Authoritative: true, RecursionDesired: query.RecursionDesired},
		Questions: query.Questions,
	}
	address := addressOf(api, strings.ToLower(question.Name.String()))
	switch {
	case address == nil:
		reply.RCode = dnsmessage.RCodeNameError
	case question.Type == dnsmessage.TypeA:
		reply.Answers = []dnsmessage.Resource{{
			Header: dnsmessage.ResourceHeader{Name: question.Name, Class: dnsmessage.ClassINET, TTL: 5},
			Body:   &dnsmessage.AResource{A: [4]byte(address)},
		}}
	}
	return reply.Pack()
}

// The IPv4 address of a Service; nil if there is none.
func addressOf(api kubernetes.Interface, name string) net.IP {
	labels := strings.Split(strings.TrimSuffix(strings.TrimSuffix(name, "."), ".cluster.local"), ".")
	if len(labels) != 3 || labels[2] != "svc" {
		return nil
	}
	service, err := api.CoreV1().Services(labels[1]).Get(context.Background(), labels[0], metav1.GetOptions{})
	if err != nil {
		return nil
	}
	return net.ParseIP(service.Spec.ClusterIP).To4()
}
