"""OVF descriptors in the dialects of VirtualBox and VMware."""

from __future__ import annotations

SPACES = """xmlns="http://schemas.dmtf.org/ovf/envelope/{version}" xmlns:ovf="http://schemas.dmtf.org/ovf/envelope/{version}"
 xmlns:rasd="http://schemas.dmtf.org/wbem/wscim/1/cim-schema/2/CIM_ResourceAllocationSettingData"
 xmlns:vssd="http://schemas.dmtf.org/wbem/wscim/1/cim-schema/2/CIM_VirtualSystemSettingData"
 xmlns:epasd="http://schemas.dmtf.org/wbem/wscim/1/cim-schema/2/CIM_EthernetPortAllocationSettingData.xsd"
 xmlns:sasd="http://schemas.dmtf.org/wbem/wscim/1/cim-schema/2/CIM_StorageAllocationSettingData.xsd"
 xmlns:vmw="http://www.vmware.com/schema/ovf" xmlns:vbox="http://www.virtualbox.org/ovf/machine" """

STREAM = "http://www.vmware.com/interfaces/specifications/vmdk.html#streamOptimized"


def item(name: str = "Item", space: str = "rasd", **values: object) -> str:
    """An item of the hardware."""
    return (
        f"<{name}>" + "".join(f"<{space}:{key}>{value}</{space}:{key}>" for key, value in values.items()) + f"</{name}>"
    )


def virtualbox(href: str = "disk.vmdk", capacity: int = 3146240) -> bytes:
    """As VirtualBox 7 exports a machine (OVF 2.0): UEFI, a disk on AHCI, a CD drive, NAT."""
    hardware = "".join(
        (
            item(Caption="2 virtual CPU", InstanceID=1, ResourceType=3, VirtualQuantity=2),
            item(AllocationUnits="MegaBytes", Caption="512 MB", InstanceID=2, ResourceType=4, VirtualQuantity=512),
            item(Address=0, Caption="ide0", InstanceID=3, ResourceSubType="PIIX4", ResourceType=5),
            item(Address=0, Caption="sata0", InstanceID=5, ResourceSubType="AHCI", ResourceType=20),
            item(InstanceID=6, ResourceSubType="ensoniq1371", ResourceType=35),
            item(
                "StorageItem",
                "sasd",
                AddressOnParent=3,
                HostResource="/disk/vmdisk1",
                InstanceID=7,
                Parent=5,
                ResourceType=17,
            ),
            item("StorageItem", "sasd", AddressOnParent=0, InstanceID=8, Parent=3, ResourceType=15),
            item("EthernetPortItem", "epasd", Connection="NAT", InstanceID=9, ResourceSubType="E1000", ResourceType=10),
        )
    )
    return f"""<?xml version="1.0"?>
<Envelope ovf:version="2.0" xml:lang="en-US" {SPACES.format(version=2)}>
<References><File ovf:id="file1" ovf:href="{href}"/></References>
<DiskSection><Info>d</Info><Disk ovf:capacity="{capacity}" ovf:diskId="vmdisk1" ovf:fileRef="file1" ovf:format="{STREAM}"/></DiskSection>
<NetworkSection><Info>n</Info><Network ovf:name="NAT"><Description>NAT</Description></Network></NetworkSection>
<VirtualSystem ovf:id="Debian test"><Info>m</Info>
<OperatingSystemSection ovf:id="96"><Info>os</Info><Description>Debian_64</Description>
<vbox:OSType ovf:required="false">Debian12_64</vbox:OSType></OperatingSystemSection>
<VirtualHardwareSection><Info>h</Info><System><vssd:InstanceID>0</vssd:InstanceID>
<vssd:VirtualSystemType>virtualbox-2.2</vssd:VirtualSystemType></System>{hardware}</VirtualHardwareSection>
<vbox:Machine ovf:required="false" version="1.19-linux"><Hardware><Firmware type="EFI"/></Hardware></vbox:Machine>
</VirtualSystem></Envelope>""".encode()


def vmware(href: str = "disk.vmdk", size: int | None = None, disks: str = "") -> bytes:
    """As VMware's ovftool writes one (OVF 1.0): two deployment options, LSI Logic and VMXNET3, EFI with secure boot."""
    hardware = "".join(
        (
            item(AllocationUnits="hertz * 10^6", InstanceID=1, ResourceType=3, VirtualQuantity=1),
            item(InstanceID=1, ResourceType=3, VirtualQuantity=4).replace("<Item>", '<Item ovf:configuration="big">'),
            item(InstanceID=1, ResourceType=3, VirtualQuantity=8).replace("<Item>", '<Item ovf:configuration="huge">'),
            item(AllocationUnits="byte * 2^30", InstanceID=2, ResourceType=4, VirtualQuantity=2),
            item(Address=0, InstanceID=3, ResourceSubType="VirtualSCSI", ResourceType=6),
            item(AddressOnParent=0, HostResource="ovf:/disk/vmdisk1", InstanceID=4, Parent=3, ResourceType=17),
            item(
                Address="00:50:56:AA:bb:01",
                Connection="VM Network",
                InstanceID=5,
                ResourceSubType="VMXNET3",
                ResourceType=10,
            ),
        )
    )
    told = f' ovf:size="{size}"' if size is not None else ""
    return f"""<?xml version="1.0" encoding="UTF-8"?>
<ovf:Envelope {SPACES.format(version=1)}>
<ovf:References><ovf:File ovf:href="{href}" ovf:id="file1"{told}/></ovf:References>
<ovf:DiskSection><ovf:Info>d</ovf:Info><ovf:Disk ovf:capacity="8" ovf:capacityAllocationUnits="byte * 2^30" ovf:diskId="vmdisk1"
 ovf:fileRef="file1" ovf:format="{STREAM}"/>{disks}</ovf:DiskSection>
<ovf:NetworkSection><ovf:Info>n</ovf:Info><ovf:Network ovf:name="VM Network"/></ovf:NetworkSection>
<ovf:DeploymentOptionSection><ovf:Info>o</ovf:Info><ovf:Configuration ovf:id="huge"/><ovf:Configuration ovf:id="big" ovf:default="true"/>
</ovf:DeploymentOptionSection>
<ovf:VirtualSystem ovf:id="vm"><ovf:Info>m</ovf:Info><ovf:Name>appliance</ovf:Name>
<ovf:OperatingSystemSection ovf:id="96" vmw:osType="debian12_64Guest"><ovf:Info>os</ovf:Info></ovf:OperatingSystemSection>
<ovf:VirtualHardwareSection><ovf:Info>h</ovf:Info><ovf:System><vssd:InstanceID>0</vssd:InstanceID></ovf:System>{hardware}
<vmw:Config ovf:required="false" vmw:key="firmware" vmw:value="efi"/>
<vmw:Config ovf:required="false" vmw:key="bootOptions.efiSecureBootEnabled" vmw:value="true"/>
</ovf:VirtualHardwareSection></ovf:VirtualSystem></ovf:Envelope>""".encode()
