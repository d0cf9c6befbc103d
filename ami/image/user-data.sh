#!/bin/sh
# User-data of the launch template. Nothing in it is secret: what an instance is, its tags say.
set -eu
cat > /etc/outstation/node.env <<END
OUTSTATION_ACCOUNT_AGENT=@ACCOUNT_AGENT@
OUTSTATION_STORE=@STORE@
OUTSTATION_ACCOUNT=@ACCOUNT@
OUTSTATION_REGION=@REGION@
END
systemctl enable --now outstation-metadata.service outstation-node.service
