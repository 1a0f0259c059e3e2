#!/bin/sh
# What becomes of a clean mail, of an infected one, and of its sender, between the three machines of the Vagrantfile.
set -eu
cd "$(dirname "$0")"

on() { # MACHINE COMMAND: run it there
    vagrant ssh "$1" --command "$2" 2> /dev/null
}
send() { # SOURCE BODY: send a mail from an address of the client, and print the server's last word
    on client "swaks --server 198.51.100.25 --local-interface $1 --from me@client.test --to alice@example.test \
        --timeout 15s --body '$2'" | grep -E '^<[-*~]* +[0-9]{3} ' | grep -v '221' | tail -n 1
}
# In pieces, so that no scanner flags this file.
eicar='X5O!P%@AP[4\PZX54(P^)7CC)7}''$EICAR''-STANDARD-''ANTIVIRUS-TEST-FILE!$H+H*'

echo "a clean mail from 10.77.1.5:        $(send 10.77.1.5 'See you at noon.')"
echo "an infected mail from 10.77.1.13:   $(send 10.77.1.13 "$eicar")"
echo "10.77.1.13 again, with a clean one: $(send 10.77.1.13 'See you at noon.' || true)"
echo "a clean mail from its neighbour:    $(send 10.77.1.5 'See you at noon.')"
echo
on router "sudo appliance-ctl locks; sudo appliance-ctl status"
